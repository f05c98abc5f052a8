# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m unept_hf` is `unept-hf`."""

import sys

from .cli import main


sys.exit(main())
