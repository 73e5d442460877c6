"""Checks before anything is trained: which cells fit their backbones, and whether rows and weights can be loaded.

Results keep only the last part of a backbone's path, so results of another network of that name are refused too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness import provenance
from harness.backbone import Backbone, Scheme, meta_backbone, weights_fingerprint
from harness.data import (
    Encoded,
    Example,
    MissingData,
    Task,
    TaskData,
    cached_encode,
    cell_rows,
    check_labels,
    encode,
    encode_choices,
    get_metric,
    make_form,
    refuse_writing,
    require_writable,
)
from harness.errors import UserError
from harness.method import (
    Method,
    check_head,
    given_head,
    num_outputs,
    read_adapter_tensors,
    read_prompt_file,
    tensors_for_others,
)
from harness.results import Failure, Result, read_result
from harness.runner.plan import Plan, backbone_placement
from harness.suite import INIT_FROM, NO_TEXT, Cell, Key, Start, other_base_model, source_of, suite_block
from harness.train import (
    BundleFacts,
    Sizes,
    build_on_shapes,
    cached_backbone,
    failed_result,
    misfit,
    read_general_text,
    require_positions,
    sizes_of,
    target_tokens,
)

Misfits = dict[Key, UserError]
"""By cell key, why a cell does not fit its backbone."""


def check_cells(plan: Plan, cells: Iterable[Cell], weights: bool = True) -> Misfits:
    """Return the cells that do not fit their backbones; load the rows and weights of all others once.

    With `weights=False` no weights are loaded, since other processes train and this one needs no memory for them.
    Raises UserError if rows or weights are missing, or if no cell fits. Nothing has been written then.
    """
    cells = list(cells)
    misfits = find_misfits(plan, cells)
    cells = [cell for cell in cells if cell.key not in misfits]
    _read_rows(plan, cells)
    check_texts(plan, cells)
    trained = [cell for cell in cells if _class(plan, cell) is not None]
    for text in {cell.recipe.forgetting_text for cell in trained} - {NO_TEXT}:
        read_general_text(text, plan.suite.folder)
    for name, recipe in {cell.backbone: cell.recipe for cell in trained}.items():
        # several processes load their own
        if weights and plan.suite.file.execution.processes == 1:
            source = plan.suite.backbone_sources[name]
            cached_backbone(source, recipe.precision, recipe.quantization, backbone_placement(plan))
    refuse_namesakes(plan)  # again: weights of a hub id may have been downloaded only now
    return misfits


def find_misfits(plan: Plan, cells: Iterable[Cell]) -> Misfits:
    """Find the cells whose method does not fit the backbone, from shapes alone: no weights are loaded.

    A suite goes on without them. Raises UserError if none of the cells to train fits, and nothing is stored yet.
    """
    fits = _Fits(plan)
    cells = list(cells)
    misfits = {cell.key: error for cell in cells if _class(plan, cell) and (error := fits.misfit(cell)) is not None}
    # sources are trained for the rows that start from them, so they alone are nothing to go on for
    sources = {cell.key for group in plan.groups if group.is_source for cell in group.cells.values()}
    rows = [cell for cell in cells if cell.key not in sources]
    trained = [cell for cell in rows if plan.methods[cell.method].cls is None or _class(plan, cell) is not None]
    has_results = any(plan.results)
    if misfits and trained and not has_results and all(cell.key in misfits for cell in trained):
        lines = lines_of(misfits)
        if len({error.problem for error in misfits.values()}) == 1:  # the same of all rows, so it is the network's
            raise next(iter(misfits.values()))
        raise UserError(f"nothing that it trains fits: {'; '.join(lines)}", where=plan.suite.document.path)
    return misfits


def lines_of(misfits: Mapping[Key, UserError]) -> list[str]:
    """One line for each table row that does not fit, with its reason."""
    return list(dict.fromkeys(f"{label} {error.problem}" for (_, label, _), error in misfits.items()))


def unfit_result(plan: Plan, cell: Cell, error: UserError) -> Result:
    """The result that is stored of a cell which does not fit, so that the report shows a dash and the reason."""
    hashes = {cell.method: plan.methods[cell.method].spec.source_sha256}
    common = BundleFacts(provenance.utc_now(), plan.suite.folder, hashes, 1, {}, 1)
    failure = Failure(type="Misfit", message=error.problem, traceback="")
    return failed_result(cell, failure, common).result.model_copy(update={"status": "unfit"})


class _Fits:
    """Judges the cells of a plan. What is equal for many of them is found out once: a grid over tasks and seeds asks
    the same of a method again and again, and every cell that starts from others asks it of all its sources.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._judged: dict[str, UserError | None] = {}
        """By `_fit_key`."""
        self._known_sizes: dict[str, tuple[int, int]] = {}
        """By `_method_key`, for methods that can be built and start from what they are to start from."""
        self._given: dict[str, dict[str, Tensor]] = {}
        """By `_method_key` of a source, the shapes that it gives to others."""
        self._keeps_beams: dict[str, bool] = {}
        """By `_method_key`."""
        self._networks: dict[tuple[str, Scheme], Backbone] = {}
        """To be read only; a method gets one of its own, since its code may change what it is given."""

    def misfit(self, cell: Cell) -> UserError | None:
        """Why a cell cannot be trained on its backbone; None if it can, or if its method's code is broken.

        A broken method is no question of fit: its cells fail when they are trained, with a traceback.
        """
        key = _fit_key(cell)
        if key not in self._judged:
            self._judged[key] = self._judge(cell)
        return self._judged[key]

    def _judge(self, cell: Cell) -> UserError | None:
        plan = self._plan
        name_or_path, quantization = plan.suite.backbone_sources[cell.backbone], cell.recipe.quantization
        backbone = self._network(name_or_path, quantization)
        where = plan.suite.document.where(*suite_block(plan.suite, cell.label))
        try:
            recipe_at = plan.suite.document.where("recipe")
            check_head(cell.recipe.head, cell.recipe.pooling, plan.tasks[cell.task], backbone, recipe_at)
            if cell.recipe.has_head and cell.definition is not None:
                task_at, field = plan.suite.document.where("define_tasks", cell.task), f"define_tasks.{cell.task}"
                refuse_writing(cell.definition, "a trained head writes no answers", task_at, field)
            _check_form(plan.tasks[cell.task], backbone, cell.recipe.max_source_length)
            sources = [self._shapes_of(cell, start) for start in cell.init_from]
            cls = _class(plan, cell)
            assert cls is not None
            reason = misfit(cls, cell.hp, name_or_path, quantization, cell.recipe.lr)
            if reason is None:
                prompt_tokens, num_trained = self._sizes(cell, sources)
                _check_what_trains(cell, cls, num_trained, recipe_at, given_head(sources[0]) if sources else {})
                _check_given_head(cell, plan.tasks[cell.task], sources, backbone, recipe_at)
                _check_positions(plan, cell, prompt_tokens, backbone)
                self._check_beams(cell, where)
                reason = misfit(cls, cell.hp, name_or_path, quantization, cell.recipe.lr, sources) if sources else None
        except UserError as error:
            return error
        except Exception:  # a mistake in a method's code is recorded as the failure of its cells
            return None
        if reason is None:
            return None
        problem = f"does not fit backbone '{cell.backbone}': {reason}"
        return UserError(problem, where=where, field=f"methods.{cell.label}")

    def _network(self, name_or_path: str, quantization: Scheme) -> Backbone:
        key = (name_or_path, quantization)
        if key not in self._networks:
            self._networks[key] = meta_backbone(name_or_path, quantization, True)
        return self._networks[key]

    def _sizes(self, cell: Cell, sources: Sequence[Mapping[str, Tensor]]) -> tuple[int, int]:
        """Positions that the method puts in front, and parameters that it trains.

        Raises UserError if it cannot be built or start from its sources.
        """
        key = _method_key(cell)
        if key not in self._known_sizes:
            name_or_path, cls = self._plan.suite.backbone_sources[cell.backbone], _class(self._plan, cell)
            network = self._network(name_or_path, cell.recipe.quantization)
            found: Method | Sizes | None = None
            if cls is not None and not cell.init_from:  # built already, to see whether it fits
                found = sizes_of(cls, cell.hp, name_or_path, cell.recipe.quantization, cell.recipe.lr)
            if found is None:
                method = found = self._build(cell)
                _check_starts(self._plan, cell, method, sources)
            # an encoder counts no positions for keys and values, and neither does a T5
            counted = found.num_positions if network.kind.name == "decoder" else found.num_prompt_tokens
            self._known_sizes[key] = counted, found.num_trained
        return self._known_sizes[key]

    def _check_beams(self, cell: Cell, where: str) -> None:
        """Raise UserError if answers are searched with beams and the method does not follow rows that change places."""
        task = self._plan.tasks[cell.task]
        searched = [part for part in task.parts or (task,) if part.num_beams > 1 and not part.is_ranked]
        if not searched or cell.recipe.has_head:
            return
        key = _method_key(cell)
        if key not in self._keeps_beams:
            method = self._build(cell)
            name_or_path = self._plan.suite.backbone_sources[cell.backbone]
            backbone = self._network(name_or_path, cell.recipe.quantization)
            # keys and values that stand in front of rows are no memory of any row
            given = backbone.takes_prefixes and method.gives_keys_and_values()
            self._keeps_beams[key] = given or method.keep_rows(torch.arange(2).repeat_interleave(2))
        if not self._keeps_beams[key]:
            problem = (
                f"remembers what it has seen of each row, which the {searched[0].num_beams} beams of task "
                f"'{searched[0].name}' do not keep"
            )
            hint = "Take 1 beam, or leave the row out by exceptions."
            raise UserError(problem, where=where, field=f"methods.{cell.label}", hint=hint)

    def _shapes_of(self, cell: Cell, start: Start) -> dict[str, Tensor]:
        """The tensors that a source cell or file will give, by name, without values. Raises UserError."""
        plan = self._plan
        if start.adapter is not None:
            _require_base_model(plan, cell, start)
            path = Path(plan.suite.folder) / str(start.file)
            return _without_values(read_adapter_tensors(path, start.config))
        if start.file is not None:
            return _without_values(read_prompt_file(Path(plan.suite.folder) / start.file))
        index = plan.index.of_source(source_of(start))
        assert index is not None, "a source has a group of its own"
        source = plan.groups[index].cells[(0, start.seed)]
        error = self.misfit(source)
        if error is not None:
            raise UserError(f"starts from {start.title}, which {error.problem}", where=error.where, field=error.field)
        key = _method_key(source)
        if key not in self._given:
            self._given[key] = _without_values(tensors_for_others(self._build(source)))
        return self._given[key]

    def _build(self, cell: Cell) -> Method:
        plan, cls = self._plan, _class(self._plan, cell)
        assert cls is not None
        where = plan.suite.document.where(*suite_block(plan.suite, cell.label))
        name_or_path = plan.suite.backbone_sources[cell.backbone]
        return build_on_shapes(cell, cls, where, lambda: meta_backbone(name_or_path, cell.recipe.quantization))


def _require_base_model(plan: Plan, cell: Cell, start: Start) -> None:
    """Raise UserError where an adapter records that it was trained on another network than the backbone."""
    names = [cell.backbone, plan.suite.backbone_sources[cell.backbone]]
    other = None if start.any_base else other_base_model(start.config, names)
    if other is not None:
        where = plan.suite.document.where(*suite_block(plan.suite, cell.label))
        problem = f"{start.adapter} was trained on '{other}' (base_model_name_or_path), not on '{cell.backbone}'"
        hint = "If that is the same network under another name: adapter: {folder: ..., base_model: any}."
        raise UserError(problem, where=where, field=f"methods.{cell.label}", hint=hint)


def _without_values(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def _check_what_trains(cell: Cell, cls: type[Method], num_trained: int, where: str, head: Mapping[str, Tensor]) -> None:
    """Raise UserError where there is a head and nothing trains it, or neither a head nor tensors of the method.

    `head` is one that an adapter was trained with, {} without.
    """
    if not cls.trains:
        if cell.recipe.has_head and not head:
            problem = f"'{cell.label}' takes no step, so nothing would train its head; recipe.head must be label"
            raise UserError(problem, where=where, field="recipe.head")
        return
    if not cell.recipe.has_head and not num_trained:
        problem = f"'{cell.label}' trains a head alone; recipe.head must be linear or hidden"
        raise UserError(problem, where=where, field="recipe.head")


def _check_given_head(
    cell: Cell, task: Task, sources: Sequence[Mapping[str, Tensor]], backbone: Backbone, where: str
) -> None:
    """Raise UserError where the head of an adapter is not one that reads this task off this backbone."""
    head = given_head(sources[0]) if sources else {}
    if not head:
        return
    if cell.recipe.head != "linear":
        problem = f"'{cell.label}' was trained with a head for classes ({', '.join(head)}); recipe.head must be linear"
        raise UserError(problem, where=where, field="recipe.head")
    wanted = {"weight": [num_outputs(task), backbone.state_width]}
    if backbone.kind.name != "decoder":
        problem = (
            f"the head of '{cell.label}' stands behind layers of its own, as heads of encoders do; it is not taken"
        )
        raise UserError(problem, where=where, field="recipe.head")
    shapes = {name: list(tensor.shape) for name, tensor in head.items()}
    if shapes != wanted:
        problem = f"the head of '{cell.label}' is {shapes}, wanted is {wanted} ({num_outputs(task)} classes)"
        raise UserError(problem, where=where, field="recipe.head")


def _check_starts(plan: Plan, cell: Cell, method: Method, sources: Sequence[Mapping[str, Tensor]]) -> None:
    """Try `start_from` on tensors that have shapes and no values. Raises UserError if the shapes do not fit."""
    if not cell.init_from:
        return
    where = plan.suite.document.where(*suite_block(plan.suite, cell.label), INIT_FROM)
    try:
        method.start_from(sources)
    except ValueError as error:
        titles = " + ".join(start.title for start in cell.init_from)
        raise UserError(f"cannot start from {titles}: {error}", where=where, field=cell.label) from None


def _read_rows(plan: Plan, cells: Sequence[Cell]) -> None:
    """Load the rows and metrics of every task. Raises UserError; if rows are missing, it names the tasks that have
    them.

    All tasks are tried first, so that one message tells of everything that can be trained.
    """
    there, missing = [], []
    for (name, *_), cell in {(cell.task, cell.few_shot, cell.row_limit): cell for cell in cells}.items():
        for task in plan.tasks[name].parts or (plan.tasks[name],):
            for metric in task.metrics:
                get_metric(metric)
        try:
            cell_rows(cell, plan.data_dir, plan.suite.folder)
        except MissingData as error:
            missing.append(error)
        except UserError:
            raise
        except Exception:  # a mistake in reading one task is recorded as the failure of its cells
            continue
        else:
            there.append(name)
    if missing:
        hint = (
            f"The rows of the others are there: --tasks {','.join(dict.fromkeys(there))}" if there else missing[0].hint
        )
        raise UserError(missing[0].problem, where=missing[0].where, field=missing[0].field, hint=hint)


def _fit_key(cell: Cell) -> str:
    """A key that is equal for cells that fit, or do not fit, for the same reason; seed and learning rate do not
    count."""
    recipe, starts = cell.recipe, [start.identity for start in cell.init_from]
    network = [cell.backbone, cell.task, recipe.max_source_length, recipe.quantization, recipe.head, recipe.pooling]
    parts = [cell.label, cell.method, cell.hp, *network, recipe.label_tokens, starts]
    return json.dumps(parts, sort_keys=True)


def _method_key(cell: Cell) -> str:
    """A key that is equal for cells whose methods are built alike, whatever the task."""
    starts = [start.identity for start in cell.init_from]
    parts = [cell.method, cell.hp, cell.backbone, cell.recipe.quantization, cell.recipe.lr, starts]
    return json.dumps(parts, sort_keys=True)


def _class(plan: Plan, cell: Cell) -> type[Method] | None:
    """The class of a cell's method; None for a rule, which needs no backbone, and for a broken file."""
    cls = plan.methods[cell.method].cls
    return cls if cls is not None and issubclass(cls, Method) else None


def _check_form(task: Task, backbone: Backbone, limit: int | None) -> None:
    """Raise UserError if the tokenizer has not the chat template that a task asks for, or one that cannot be used.

    Also if it gives labels such tokens that one of them could never be the likeliest.
    """
    for part in task.parts or (task,):
        if backbone.tokenizer is None:  # of a hub id it may not be here yet; then the run's cells fail
            continue
        form = make_form(part, backbone)
        check_labels(part, form)
        if form.name == "chat":  # its own tokens have to leave room for a text
            form.source_ids([Example("", "", ("",))], limit or part.max_source_length)


def read_own_rows(plan: Plan, cells: Iterable[Cell]) -> None:
    """Raise UserError, at the row, where the files that the user names, or generated rows, cannot be read."""
    for cell in {(cell.task, cell.few_shot): cell for cell in cells if plan.tasks[cell.task].is_here}.values():
        cell_rows(cell, plan.data_dir, plan.suite.folder)


def check_texts(plan: Plan, cells: Iterable[Cell]) -> None:
    """Raise UserError, at the row, where a backbone cannot take a text that a cell reads or answers with.

    So it is with a conversation that a chat template refuses, or whose last text has no room, with an answer that the
    template rewrites or that spells a special token, and with a choice without any token. Rows that cannot be read are
    left out.
    """
    trained = [cell for cell in cells if _class(plan, cell) is not None]  # a rule reads no text
    asked = {
        (cell.task, cell.few_shot, cell.row_limit, cell.backbone, cell.recipe.max_source_length): cell
        for cell in trained
    }
    network = functools.cache(lambda source, quantization: meta_backbone(source, quantization, True))
    for cell in asked.values():
        task = plan.tasks[cell.task]
        if not any(_may_be_refused(part) for part in task.parts or (task,)):
            continue
        backbone = network(plan.suite.backbone_sources[cell.backbone], cell.recipe.quantization)
        try:
            data = cell_rows(cell, plan.data_dir, plan.suite.folder)
        except Exception:  # `_read_rows` says what is wrong with them
            continue
        for part in data.parts or (data,):
            if backbone.tokenizer is not None and _may_be_refused(part.task):
                limit = cell.recipe.max_source_length or part.task.max_source_length
                for split in ("train", "dev", "test"):
                    _check_split(part, split, backbone, limit)


def _may_be_refused(task: Task) -> bool:
    """Whether a tokenizer may be unable to take a row of a task; any other text is read as it is, or cut."""
    return task.form in ("chat", "auto") or task.is_ranked or (task.form == "plain" and task.kind == "text")


def _check_split(data: TaskData, split: str, backbone: Backbone, limit: int) -> None:
    """Tokenise a split as a run does. Raises UserError at the first row that cannot be."""
    task, examples = data.task, data.split(split)

    def tokenise(rows: Sequence[Example], encoder: Callable[..., Encoded]) -> None:
        require_writable(rows, backbone, task)
        encoder(rows, backbone, task, limit)
        if split != "train":
            encode_choices(rows, backbone, task)

    try:
        tokenise(examples, cached_encode)  # which the run then finds
    except UserError:
        for number, example in enumerate(examples):
            try:
                tokenise([example], encode)
            except UserError as error:
                where = f"{task.name} {split} row {number}"
                raise UserError(error.problem, where=where, hint=error.hint) from None
        raise


def _check_positions(plan: Plan, cell: Cell, prompt_tokens: int, backbone: Backbone) -> None:
    """Raise UserError if prompt, text and answer together need more positions than the backbone has."""
    task = plan.tasks[cell.task]
    source = cell.recipe.max_source_length or task.max_source_length
    target = 0 if cell.recipe.has_head else target_tokens(task, backbone, cell.recipe.label_tokens)
    place, field = plan.suite.document.path, f"{cell.label} on {cell.task}"
    require_positions(backbone, prompt_tokens, source, target, place, field)


def refuse_namesakes(plan: Plan) -> None:
    """Raise UserError if results are stored under a backbone's name that were made with other weights.

    They would be shown as results of this backbone, and `--rerun stale` would overwrite them. Weights of a hub id that
    are not on this machine yet cannot be compared; a run asks again once they are downloaded.
    """
    for name in {cell.backbone: None for group in plan.groups for cell in group.cells.values()}:
        given = plan.suite.backbone_sources[name]
        weights = weights_fingerprint(given)
        for result in _trained_on(plan, name) if weights != "unresolved" else ():
            assert result.backbone is not None
            stored = result.backbone.fingerprint.partition("+")[0]  # without the quantization behind the "+"
            if stored != weights:
                raise UserError(
                    f"'{given}' is another network than the '{name}' whose results are stored in {plan.store.root} "
                    f"(weights {stored} there, {weights} here)",
                    where="--backbones" if plan.suite.overrides.backbones else plan.suite.document.where("backbones"),
                    hint=f"Give it a name of its own, as in --backbones NEW_NAME={given}, or another results folder; "
                    "if it replaces the old one, delete the results of that.",
                )


def _trained_on(plan: Plan, backbone: str) -> Iterator[Result]:
    """Results under a backbone's name: all of the plan, and one for each other row and task of the same suites.

    One is enough there: every folder was filled under this same check.
    """
    known = [result for results in plan.results for result in results.values() if result.cell.backbone == backbone]
    yield from filter(_has_weights, known)
    paths = {plan.store.path(result.cell) for result in known}
    for suite in sorted({cell.suite for group in plan.groups for cell in group.cells.values()}):
        for folder in sorted((plan.store.root / suite).glob(f"*/*/{backbone}")):
            for path in sorted(set(folder.glob("[!.]*.json")) - paths):
                try:
                    result = read_result(path)
                except UserError:
                    continue  # a damaged file; `harness report` and `harness verify` name it
                if _has_weights(result):
                    yield result
                    break


def _has_weights(result: Result) -> bool:
    """Whether a result was made with a backbone: not so a rule, a failure, or a cell that does not fit."""
    return result.backbone is not None and result.backbone.num_params > 0
