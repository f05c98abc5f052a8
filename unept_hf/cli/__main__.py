# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m unept_hf.cli` is `unept-hf`, as launchers need it: `accelerate launch -m unept_hf.cli train ...`."""

import sys

from . import main


sys.exit(main())
