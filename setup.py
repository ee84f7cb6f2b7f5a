"""The two extension modules; everything else is in pyproject.toml, how they are compiled in _build/extensions.py."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "_build"))

from extensions import BuildExtensions, extension_modules

setup(
    ext_modules=extension_modules(),
    cmdclass={"build_ext": BuildExtensions},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
