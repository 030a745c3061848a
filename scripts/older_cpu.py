"""An Intel CPU as one that ends with AVX2: the environment of programs that shall see it so."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "hide_avx512.c"


def older_cpu(folder: Path) -> dict[str, str]:
    """Environment variables; what they name is built into ``folder``, which takes a C compiler."""
    library, shown = folder.resolve() / "hide_avx512.so", folder.resolve() / "cpuinfo.txt"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    shown.write_text(re.sub(r" (avx512|avx_vnni|amx_)\w*", "", Path("/proc/cpuinfo").read_text()))
    return {**os.environ, "LD_PRELOAD": str(library), "HIDE_CPUINFO": str(shown)}
