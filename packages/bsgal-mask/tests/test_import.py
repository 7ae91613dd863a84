from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import sys
{extra}
import bsgal_mask
heavy = {{"onnxruntime", "torch", "transformers", "bsgal_paste"}} & sys.modules.keys()
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize(("extra", "is_light"), [("", True), ("import onnxruntime", False)])
def test_importing_the_package_imports_nothing_heavy(extra, is_light):
    """The second case shows that the check can fail."""
    result = subprocess.run(
        [sys.executable, "-c", CHECK.format(extra=extra)], capture_output=True, check=False
    )
    assert (result.returncode == 0) is is_light
