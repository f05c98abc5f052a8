# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m unept_hf` is `unept-hf`, as launchers such as `accelerate launch -m unept_hf` need it."""

import sys

from .cli.main import main


sys.exit(main())
