"""Whether a method fits a network is known from shapes alone, and what does not fit is a row with its reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import byte_tokenizer, write_checkpoint, write_reviews
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner
from typing_help import present

from harness.backbone.fingerprint import weights_fingerprint
from harness.backbone.load import meta_backbone
from harness.backbone.names import SHIPPED
from harness.backbone.network import Backbone
from harness.cli.commands import app
from harness.cli.list_params import describe_params
from harness.errors import UserError
from harness.method.method import Rule
from harness.method.registry import discover
from harness.results.store import ResultStore
from harness.runner import preflight
from harness.runner.plan import make_plan
from harness.runner.preflight import find_misfits
from harness.runner.run_suite import run
from harness.suite.make_groups import Overrides
from harness.train.method_fit import Sizes, _compute, _OnShapes, misfit, sizes_of
from harness.train.tiny_backbones import TinyTokenizer

pytestmark = pytest.mark.usefixtures("few_rows")

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 128, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "gpt_neox": SMALL,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 512, "eos_token_id": 1},
    "phi3": {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
            "max_position_embeddings": 512, "word_embed_proj_dim": 32, "pad_token_id": 1},
}  # fmt: skip
DEFAULTS = {"dept": {"prompt_length": 4, "budget_length": 20}, "accept": {"budget_length": 200}}
METHODS = {n: m.cls for n, m in discover().items() if m.cls and not issubclass(m.cls, Rule)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of each network, without weights."""
    root = tmp_path_factory.mktemp("networks")
    for kind, settings in NETWORKS.items():
        AutoConfig.for_model(kind, **settings).save_pretrained(root / kind)
    return root


def network(kind: str) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **NETWORKS[kind]))
    return Backbone(kind, model.eval(), TinyTokenizer(), None, "float32")


def test_the_number_format_of_the_files_decides_nothing(folders: Path, tmp_path: Path) -> None:
    """Most checkpoints of today are bfloat16; all are trained in float32. SmolLM2 was refused full fine-tuning."""
    config = json.loads((folders / "qwen3" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert {weight.dtype for weight in meta_backbone(str(tmp_path)).model.parameters()} == {torch.float32}
    for name in ("finetune", "lora", "prompt_tuning", "peft"):
        settings = {"config": {"peft_type": "LORA"}} if name == "peft" else DEFAULTS.get(name, {})
        assert misfit(METHODS[name], settings, str(tmp_path)) is None, name


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "qwen3"])
def test_a_method_fits_exactly_where_it_computes_a_finite_loss(kind: str, folders: Path) -> None:
    """No third outcome: what is said of shapes holds for values."""
    for name, cls in METHODS.items():
        if not cls.takes_sources[0]:
            settings = DEFAULTS.get(name, {})
            reason = misfit(cls, settings, str(folders / kind))
            loss = loss_or_error(cls, settings, kind)
            if isinstance(loss, Exception):
                assert reason, f"{name}: {loss!r}"
                assert "\n" not in reason
            else:
                assert reason is None, f"{name}: {reason}"
                assert loss.isfinite()


def loss_or_error(cls: Any, settings: dict[str, Any], kind: str) -> torch.Tensor | Exception:
    backbone = network(kind)
    try:
        return loss_of(cls(cls.HP(**settings), backbone), backbone)
    except Exception as error:
        return error


def loss_of(method: Any, backbone: Backbone) -> torch.Tensor:
    embeds, mask = torch.randn(2, 5, backbone.hidden), torch.ones(2, 5, dtype=torch.long)
    if not type(method).is_layer_side():
        embeds, mask = method(embeds, mask)
    method.attach(backbone)
    try:
        backbone.decode(embeds, mask, 2)
        losses: torch.Tensor = method.token_losses(backbone, embeds, mask, torch.tensor([[3, 4, 1]] * 2)).sum()
        return losses
    finally:
        method.detach(backbone)


def test_no_weight_is_read_and_nothing_is_left_on_the_network(folders: Path) -> None:
    backbone = network("qwen3").model.to("meta")
    shapes = _OnShapes(Backbone("meta", backbone, None, None, "float32"))
    before = {name: id(p) for name, p in backbone.named_parameters()}
    for name in ("finetune", "bitfit", "prefix_tuning"):
        _compute(METHODS[name](METHODS[name].HP(), shapes), shapes)
    assert before == {name: id(p) for name, p in backbone.named_parameters()}
    assert not (folders / "qwen3" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["bitfit", "lst", "adapter"])
def test_norms_as_wide_as_a_head_are_taken_as_wide_as_they_are(name: str) -> None:
    """Every trained number acts: its tensor is no wider than what it is added to, and gets a gradient."""
    backbone = network("qwen3")
    method: Any = METHODS[name](METHODS[name].HP(), backbone)
    loss_of(method, backbone).backward()
    norms = {key: p for key, p in method.named_parameters() if "q_norm" in key or "k_norm" in key}
    widths = {p.numel() for p in norms.values()}
    assert widths == {4} if name == "lst" else widths == {32}
    if name == "bitfit":  # a query and a key norm in both layers
        assert sum(p.numel() for p in norms.values()) == 2 * 2 * 32
        assert all(p.grad is not None for p in norms.values())


def test_a_side_networks_head_norms_keep_the_dimensions_that_queries_and_keys_keep() -> None:
    backbone = network("qwen3")
    attention = backbone.model.model.layers[1].self_attn
    torch.nn.init.zeros_(attention.k_proj.weight)
    kept = [3, 9, 19, 25]  # two pairs of a rotary embedding over 32 dimensions
    with torch.no_grad():
        attention.q_proj.weight.zero_().view(4, 32, 64)[:, kept] = 1.0
        attention.q_norm.weight.copy_(torch.arange(32.0))
    method: Any = METHODS["lst"](METHODS["lst"].HP(), backbone)
    assert method.ladders["decoder"].side.layers[0].self_attn.q_norm.weight.tolist() == kept


def test_factors_stand_on_every_feed_forward_part_whatever_its_name(folders: Path) -> None:
    """OPT calls it fc2: targets by name would leave these factors out without a word."""
    assert misfit(METHODS["ia3"], {}, str(folders / "opt")) is None
    backbone = network("opt")
    method: Any = METHODS["ia3"](METHODS["ia3"].HP(), backbone)
    ends = [name.split("/")[-3] for name in method.tensors]
    assert sorted(ends) == sorted(["k_proj", "v_proj", "fc2"] * 2), method.tensors.keys()


def test_a_bias_narrower_than_what_it_is_added_to_is_padded_and_never_cut() -> None:
    biases: Any = METHODS["bitfit"](METHODS["bitfit"].HP(), network("qwen3"))
    key = next(key for key in biases.biases.vectors if "q_norm" in key)
    with pytest.raises(ValueError, match="gives 16 numbers, its bias has 32"):
        biases.biases._add(key, torch.zeros(1, 16))


SUITE = """\
suite: mixed
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
recipe: {steps: 2, eval_every: 2, batch_size: 2, lr: 0.1}
methods: {majority: , prompt_tuning: {prompt_length: 2}, wide: {method: accept, prompt_width: 7}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "suite.yaml").write_text(SUITE)
    return folder, run(folder / "suite.yaml", results=folder / "out", quiet=True)


def test_one_row_that_does_not_fit_is_left_out_and_said(ran: tuple[Path, Any]) -> None:
    folder, summary = ran
    assert (summary.num_trained, summary.num_failed) == (4, 0)
    reason = "does not fit backbone 'micro-t5': a subvector width of 7 does not divide the backbone's width 96"
    assert summary.unfit == (f"wide {reason}",)
    stored = {r.cell.label: r for _, r in ResultStore(folder / "out").scan()}
    assert (stored["wide"].status, present(stored["wide"].failure).message) == ("unfit", reason)
    call = CliRunner()
    for style in ("terminal", "markdown", "latex", "html", "csv", "json"):
        told = call.invoke(app, ["report", str(folder / "out"), "--format", style])
        assert told.exit_code == 0
        assert "a subvector width of 7" in told.output or style == "csv"
    assert call.invoke(app, ["verify", str(folder / "out")]).exit_code == 0


def test_what_does_not_fit_is_judged_anew_by_every_run_and_written_once(ran: tuple[Path, Any]) -> None:
    folder, _ = ran
    before = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("*.json")}
    for rerun in ("none", "failed", "stale"):
        again = run(folder / "suite.yaml", results=folder / "out", quiet=True, rerun=rerun)
        assert (again.num_trained, again.num_kept, len(again.unfit)) == (0, 4, 1)
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("*.json")}


def test_plan_counts_what_does_not_fit_and_ends_with_one(ran: tuple[Path, Any]) -> None:
    folder, _ = ran
    told = CliRunner().invoke(app, ["plan", str(folder / "suite.yaml"), "--results", str(folder / "new"), "--no-probe"])
    assert told.exit_code == 1
    assert "1 rows do not fit and are left out" in told.output
    timed = told.output.partition("Time of the missing cells")[2]
    assert "prompt_tuning" in timed
    assert "wide" not in timed
    assert re.search(r"^all +2 ", timed, re.MULTILINE)
    done = CliRunner().invoke(app, ["run", str(folder / "suite.yaml"), "--results", str(folder / "out"), "--quiet"])
    assert done.exit_code == 1
    assert "a subvector width of 7" in done.output


def test_a_suite_in_which_nothing_fits_is_an_error_and_writes_nothing(ran: tuple[Path, Any]) -> None:
    folder, _ = ran
    with pytest.raises(UserError, match="does not fit backbone 'micro-t5': a subvector width of 7"):
        run(folder / "suite.yaml", methods=["wide"], results=folder / "none", quiet=True)
    assert not (folder / "none").exists()


OWN = """
from harness.method import LayerChange, Method, Paper
import torch
from torch import nn

class Own(Method):
    name = "own"
    paper = Paper("nobody-2026", "https://example.org")

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.bias = nn.Parameter(torch.zeros(backbone.hidden))
        self.layers = list(backbone.model.base_model.layers)

    def layer_changes(self):
        return [LayerChange(layer.self_attn.o_proj, after=lambda states: states + self.bias) for layer in self.layers]
"""
STARTED = (
    OWN.replace("Own", "Started")
    .replace('"own"', '"started"')
    .replace(
        "paper =",
        """takes_sources = (1, 1)
    paper =""",
    )
    + """
    def start_from(self, sources):
        self.bias.data.copy_(sources[0]["prompt"][0])
"""
)


def test_a_method_of_ones_own_is_judged_by_computing_with_it(folders: Path, tmp_path: Path) -> None:
    """It can be built on GPT-NeoX, whose modules have other names than Llama's, for which it was written."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "own.py").write_text(OWN)
    (tmp_path / "methods" / "started.py").write_text(STARTED)
    config = {**SMALL, "model_type": "gpt_neox", "vocab_size": 300}
    source = str(write_checkpoint(tmp_path / "net", config, byte_tokenizer()))
    save_file({"prompt": torch.zeros(2, 64)}, tmp_path / "prompt.safetensors")
    rows = "methods: {own: , started: {init_from: {file: prompt.safetensors}}}\n"
    (tmp_path / "suite.yaml").write_text(SUITE.replace("micro-t5", source).split("methods:")[0] + rows)
    plan = make_plan(tmp_path / "suite.yaml", Overrides(), tmp_path / "out", None, [str(tmp_path / "methods")])
    reason = r"it is not written for networks of this kind: \w+\.py:\d+ stops with AttributeError .*'self_attn'"
    for group in plan.groups:
        with pytest.raises(UserError, match=reason):
            find_misfits(plan, group.cells.values())
    with pytest.raises(UserError, match=reason):
        describe_params(plan.methods, ["own"], source, {})
    assert misfit(plan.methods["own"].cls, {}, str(folders / "qwen3")) is None  # type: ignore[arg-type]


MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
SWITCH = {"model_type": "switch_transformers", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2,
          "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
          "decoder_start_token_id": 0}  # fmt: skip
MIXTRAL = {**SMALL, "model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 2}


def test_a_network_without_attention_is_known_before_anything_is_trained(tmp_path: Path) -> None:
    suite = write_reviews(tmp_path, [write_checkpoint(tmp_path / "net", MAMBA, byte_tokenizer())])
    said = r"does not fit backbone 'net': \w+ gives no stored keys and values"
    with pytest.raises(UserError, match=said):
        run(suite, results=tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match=said) as refused:
        run(suite, methods=["majority", "dept", "lora"], results=tmp_path / "out", quiet=True)
    assert str(refused.value).count("does not fit") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("config", "others"), [(MIXTRAL, ["ia3"]), (SWITCH, ["lst"])], ids=["mixtral", "switch"])
def test_a_network_that_shapes_cannot_decide_is_tried_in_earnest(
    config: dict[str, Any], others: list[str], tmp_path: Path
) -> None:
    """Operators of experts take no float32 where there are shapes alone, or ask how many rows an expert has."""
    net = write_checkpoint(tmp_path / "net", {**config, "vocab_size": 300}, byte_tokenizer())
    suite = write_reviews(tmp_path, [net])
    done = run(suite, methods=["lora", "prefix_tuning", *others], results=tmp_path / "out", quiet=True)
    failed = [r.failure for _, r in ResultStore(tmp_path / "out").scan() if r.status == "failed"]
    assert (done.num_trained, failed) == (2, [])
    assert [line.partition(":")[0] for line in done.unfit] == [f"{name} does not fit backbone 'net'" for name in others]


@pytest.mark.parametrize("kind", ["vit", "whisper"])
def test_a_configuration_of_no_network_of_texts_is_one_sentence(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path / "net")
    plan = make_plan(write_reviews(tmp_path, [tmp_path / "net"]), Overrides(), tmp_path / "out", None)
    with pytest.raises(UserError, match=r"no network can be built from .*net': Unrec") as told:
        find_misfits(plan, plan.asked())
    assert told.value.problem.count("\n") == 0


def test_a_check_of_a_suite_says_what_does_not_fit(ran: tuple[Path, Any]) -> None:
    told = CliRunner().invoke(app, ["check", str(ran[0] / "suite.yaml")])
    assert "1 rows do not fit:\nwide does not fit backbone 'micro-t5': a subvector width of 7" in told.output


def test_a_mistake_in_a_methods_code_is_no_question_of_fit() -> None:
    class Broken(METHODS["bitfit"]):  # type: ignore[misc, name-defined, valid-type]
        def layer_changes(self) -> Any:
            return self.nothing_of_this_name

    assert misfit(Broken, {}, "micro-t5") is None


def test_nothing_is_drawn_to_judge_a_method_unless_its_code_reads_it(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of shapes alone cost nothing: some types of PEFT permute all places of every weight."""
    made: list[bool] = []
    permute = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **kw: _noted(permute(*args, **kw), made))
    fourier = {"config": {"peft_type": "FOURIERFT", "n_frequency": 7}}
    assert misfit(METHODS["peft"], fourier, str(folders / "qwen3")) is None
    assert made
    assert all(made)

    class Reads(METHODS["bitfit"]):  # type: ignore[misc, name-defined, valid-type]
        def __init__(self, hp: Any, backbone: Backbone) -> None:
            super().__init__(hp, backbone)
            self.num_read = int(torch.randperm(5)[0]) + len(torch.rand(3).tolist())

    made.clear()
    assert misfit(Reads, {}, "micro-t5") is None
    assert made == [True, False]
    assert sizes_of(Reads, {}, "micro-t5") == sizes_of(METHODS["bitfit"], {}, "micro-t5")


def _noted(tensor: torch.Tensor, made: list[bool]) -> torch.Tensor:
    made.append(tensor.is_meta)
    return tensor


def test_the_sizes_of_a_trial_are_those_of_the_method_as_it_trains(folders: Path) -> None:
    for name in ("lora", "prompt_tuning", "prefix_tuning"):
        method = METHODS[name](METHODS[name].HP(), network("qwen3"))
        counted = Sizes(method.num_positions, method.num_prompt_tokens, method.num_trained)
        assert sizes_of(METHODS[name], {}, str(folders / "qwen3")) == counted


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two networks in folders of the same name, which differ in one weight."""
    for run_name in ("a", "b"):
        shutil.copytree(SHIPPED["micro-t5"], tmp_path / run_name / "checkpoint-500")
    file = tmp_path / "b" / "checkpoint-500" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 0.5}, file, {"format": "pt"})
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


def test_another_network_of_a_stored_name_is_refused_until_it_has_its_own(two: Path) -> None:
    first, second = str(two / "a" / "checkpoint-500"), str(two / "b" / "checkpoint-500")
    options: dict[str, Any] = {"methods": ["prompt_tuning"], "seeds": [1], "results": two / "out", "quiet": True}
    assert run(two / "suite.yaml", backbones=[first], **options).num_trained == 1
    before = {p: p.read_bytes() for p in (two / "out").rglob("*.*") if p.is_file()}
    for rerun in ("none", "failed", "stale"):
        with pytest.raises(UserError, match=r"another network than the 'checkpoint-500'.*NEW_NAME="):
            run(two / "suite.yaml", backbones=[second], rerun=rerun, **options)
    told = CliRunner().invoke(
        app, ["plan", str(two / "suite.yaml"), "--backbones", second, "--results", str(two / "out")]
    )
    assert "another network than the 'checkpoint-500'" in str(told.exception)
    other_row = {**options, "methods": ["dept"], "settings": {"methods.dept.budget_length": 120}}
    with pytest.raises(UserError, match="another network"):  # nor may its rows stand beside those of the first
        run(two / "suite.yaml", backbones=[second], **other_row)
    assert before == {p: p.read_bytes() for p in (two / "out").rglob("*.*") if p.is_file()}
    assert run(two / "suite.yaml", backbones=[f"later={second}"], **options).num_trained == 1
    assert run(two / "suite.yaml", backbones=[first], **options).num_kept == 1
    assert {r.cell.backbone for _, r in ResultStore(two / "out").scan()} == {"checkpoint-500", "later"}


def test_weights_that_a_run_has_just_downloaded_are_compared_before_it_trains(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = str(two / "a" / "checkpoint-500"), str(two / "b" / "checkpoint-500")
    options: dict[str, Any] = {"methods": ["prompt_tuning"], "seeds": [1], "results": two / "out", "quiet": True}
    run(two / "suite.yaml", backbones=[first], **options)
    before = {p: p.read_bytes() for p in (two / "out").rglob("*.*") if p.is_file()}
    asked: list[str] = []

    def unresolved_at_first(name: str) -> str:
        asked.append(name)
        return "unresolved" if len(asked) == 1 else weights_fingerprint(name)

    monkeypatch.setattr(preflight, "weights_fingerprint", unresolved_at_first)
    with pytest.raises(UserError, match="another network"):
        run(two / "suite.yaml", backbones=[second], **{**options, "seeds": [2]})
    assert before == {p: p.read_bytes() for p in (two / "out").rglob("*.*") if p.is_file()}
