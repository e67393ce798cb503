"""What README types is typed in the clone's folder, whose own folders have names that other packages have, too."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_diffusers_is_found_in_the_clone():
    """transformers imports ``kernels``, if there is such a package, to see which version it is."""
    pytest.importorskip("diffusers")
    code = "from diffusers import UNet2DModel; import stepfuse.export; print('done')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr[-500:]
