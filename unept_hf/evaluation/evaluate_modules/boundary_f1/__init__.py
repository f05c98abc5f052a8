# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Boundary F-score."""
