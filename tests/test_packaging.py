"""The package metadata: one version, the license, types and the sources of the kernels."""

import ast
import configparser
from pathlib import Path

import lstmx

ROOT = Path(__file__).resolve().parent.parent


def config():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_in_one_place():
    assert config()["metadata"]["version"] == "attr: lstmx.__version__"
    # Read without importing lstmx, since builds have no jax.
    tree = ast.parse((ROOT / "lstmx" / "__init__.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(values["__version__"]) == lstmx.__version__
    for name in ("setup.cfg", "pyproject.toml", "CITATION.cff", "README.md"):
        assert lstmx.__version__ not in (ROOT / name).read_text(encoding="utf-8")


def test_the_package_has_its_license_types_and_kernels():
    assert config()["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / config()["metadata"]["license_files"]).read_text(encoding="utf-8")
    data = config()["options.package_data"]
    for package, pattern in data.items():
        assert list((ROOT / package.replace(".", "/")).glob(pattern.strip())), (package, pattern)
    assert data["lstmx"].strip() == "py.typed"


def test_editable_installations_use_a_path():
    # Without this, setuptools installs an import hook, with a warning.
    assert config()["options"]["package_dir"].strip() == "= ."
