"""The tables of costs: every row, whatever the times."""

import json
import re

import pytest
import torch
from command_line import made, refused, save, says

import interp
from interp.app.bench import apart, doors, retrieval
from interp.app.bench.clock import Cost, Effort, NotApplicable, attempt, require_memory
from interp.app.bench.forwards import FORWARDS
from interp.app.bench.inputs import model_call, random_call, random_llama
from interp.app.bench.passes import PASSES, Yardstick
from interp.app.bench.peers import peer_routes
from interp.app.bench.race import Entrant, race
from interp.app.bench.routes import deviation
from interp.app.bench.table import markdown
from interp.app.bench.tap import ROUTES
from interp.capture import Capture
from interp.errors import InputError
from interp.kernels import reference, statistics
from interp.kernels.definitions import Pattern
from interp.models import load

CPU = torch.device("cpu")
HEADS = ["--heads", 4, "--kv-heads", 2]
SMALL = [*HEADS, "--head-dim", 8, "--dtype", "float32", "--repeats", 1]

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


def rows_of(table: str) -> list[list[str]]:
    rows = [line for line in table.splitlines() if re.match(r"\| *\d", line)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


class TestTap:
    @pytest.mark.slow
    def test_every_route_has_a_row_with_its_ratio(self, llama, tmp_path):
        out = tmp_path / "results.md"
        out.write_text("# Results\n")
        options = ["--tokens", "64", "--repeats", 1, "--threads", 1, "--out", out]
        table = made("bench", "tap", llama, *options)
        assert out.read_text("utf-8") == f"# Results\n{table}"
        rows = rows_of(table)
        assert [row[:2] for row in rows] == [["64", words] for words in ROUTES.values()]
        assert all(number(cell) >= 0 for row in rows for cell in row[2:])
        assert rows[0][3] == "1.00"
        assert rows[0][5] == "1.00"
        assert says(table, "1 threads", "fastest of 1", "interp bench tap", "torch")

    def test_what_the_machine_has_no_memory_for_is_said(self):
        cells: dict[tuple[str, int], dict[str, float] | None] = {
            (route, 64): {"cpu": 2.0, "wall": 1.0, "extra": 2**20} for route in ROUTES
        }
        cells["eager", 64] = None
        cells["traced", 64] = {"cpu": 3.0, "wall": 1.5, "extra": 2**21}
        found = apart.rows(ROUTES, [64], cells)
        assert found[1][2:] == ["3.00", "1.50", "1.50", "1.50", "2"]
        assert found[-1][2:] == ["not enough memory"]

    def test_a_measurement_that_fails_says_why(self, tmp_path):
        options = ["--tokens", "64", "--out", tmp_path / "results.md"]
        line = refused("bench", "tap", tmp_path / "none", *options)
        assert says(line, "64 tokens", "no such file or folder", "Check the path.")

    def test_the_exit_code_for_short_memory_is_no_other(self):
        assert apart.OUT_OF_MEMORY not in (0, 1, 2, 130)

    def test_maps_that_do_not_fit_end_the_process(self, llama):
        with pytest.raises(SystemExit) as ended:
            apart.require_room_for_maps(load(llama), 10**7)
        assert ended.value.code == apart.OUT_OF_MEMORY
        apart.require_room_for_maps(load(llama), 10)


class TestDoors:
    """Each route in this process, since each is a process of its own otherwise."""

    @pytest.mark.parametrize("route", doors.ROUTES)
    def test_every_route_is_measured(self, route, llama, capsys):
        for package in ("nnsight", "transformer_lens"):
            pytest.importorskip(package)
        doors._run(str(llama), route, 24, 1, 1)
        cell = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert set(cell) == {"cpu", "wall", "extra"}
        assert cell["cpu"] > 0

    def test_patterns_that_others_keep_are_those_of_the_trace(self, llama):
        for package in ("nnsight", "transformer_lens"):
            pytest.importorskip(package)
        ids = torch.arange(3, 27)
        own = interp.trace(load(llama), ids, capture=Capture((Pattern(),), None, False))
        wanted = torch.from_numpy(own["self"]["pattern"].values)
        saved = doors._work(load(llama), "nnsight patterns")(ids)
        cached = doors._work(load(llama), "lens patterns")(ids)[1]
        for layer, pattern in enumerate(wanted):
            torch.testing.assert_close(saved[layer][0], pattern)
            theirs = cached[f"blocks.{layer}.attn.hook_pattern"][0]
            torch.testing.assert_close(theirs, pattern)


class TestKernels:
    def test_every_route_has_a_row_or_a_reason(self, tmp_path):
        out = tmp_path / "results.md"
        out.write_text("# Results\n")
        options = ["--tokens", "24,40", "--device", "cpu", *SMALL, "--out", out]
        table = made("bench", "kernels", *options)
        assert out.read_text("utf-8") == f"# Results\n{table}"
        rows = rows_of(table)
        for length in ("24", "40"):
            routes = {row[1]: row[2:] for row in rows if row[0] == length}
            for impl in statistics.IMPLEMENTATIONS:
                for each in PASSES.values():
                    assert f"{impl}: {each.words}" in routes
            ratios = [cells[1] for route, cells in routes.items() if "forward" in route]
            assert "1.00" in ratios
            measured = {r: c for r, c in routes.items() if c[1]}
            assert any("weighted" in route for route in measured)
            assert any("eager" in route for route in measured)
            assert all(number(cells[1]) >= 0 for cells in measured.values())
            assert all(number(c[3]) < 1e-4 for c in measured.values() if c[3])
        _, _, not_run = table.partition("Not run:")
        assert says(not_run, "- forward, cuDNN: it needs a GPU", "FlexAttention")
        assert says(table, "random, 4/2 heads of 8, causal, float32", "median of 1")
        assert says(table, "interp bench kernels --tokens 24,40", "torch 2.")

    def test_others_that_are_not_installed_are_named(self):
        options = ["--tokens", 8, *SMALL, "--routes", "flash,flash-colsum,flag-attn"]
        table = made("bench", "kernels", "--device", "cpu", *options)
        assert [row[1] for row in rows_of(table)] == [
            "forward, PyTorch's flash attention"
        ]
        _, _, not_run = table.partition("Not run:")
        assert says(not_run, "- flash-colsum", "- FlagAttention: forward with total")

    def test_ratios_have_a_base_whatever_routes_are_named(self):
        options = ["--tokens", 9, *SMALL, "--routes", "tiled", "--passes", "lse"]
        rows = rows_of(made("bench", "kernels", "--device", "cpu", *options))
        assert [row[1].split()[0] for row in rows] == ["forward,", "forward,", "tiled:"]
        assert number(rows[-1][3]) > 0

    def test_a_window_is_kept_by_every_route_that_runs(self):
        options = ["--tokens", 30, *SMALL, "--window", 7, "--passes", "basic"]
        table = made("bench", "kernels", "--device", "cpu", *options)
        rows = rows_of(table)
        assert {row[1] for row in rows if row[1].startswith("forward")} == {
            "forward, as interp's tap runs it"
        }
        assert [number(row[5]) < 1e-4 for row in rows if row[5]].count(True) >= 4
        assert says(table, "window 7", "- forward, PyTorch's flash attention: ")

    def test_queries_and_keys_come_from_a_model(self, llama):
        options = ["--data", llama, "--layer", 1, "--dtype", "float32", "--repeats", 1]
        limits = ["--tokens", 20, "--routes", "eager", "--device", "cpu"]
        table = made("bench", "kernels", *options, *limits)
        assert says(table, "Kernels: llama, layer 1, float32")
        assert number(rows_of(table)[-1][5]) < 1e-4

    def test_the_layer_is_the_one_asked_for(self, llama):
        model = load(llama)
        first, second = (model_call(model, 20, layer) for layer in (0, 1))
        assert first.query.shape == second.query.shape
        assert not torch.equal(first.query, second.query)


class TestPrefill:
    def test_traced_forwards_stand_beside_untraced_ones(self, tmp_path):
        out = tmp_path / "results.md"
        options = ["--shape", "tiny", "--tokens", "16,24", "--repeats", 1, "--out", out]
        table = made("bench", "prefill", "--device", "cpu", *options)
        assert out.read_text("utf-8") == table
        rows = rows_of(table)
        assert [row[0] for row in rows] == ["16"] * 4 + ["24"] * 4
        assert rows[0][1:2] + rows[0][3:4] == ["forward, SDPA", "1.00"]
        assert [row[1].split(":")[0] for row in rows[1:4]] == [
            "tap",
            "interp.trace",
            "interp.trace",
        ]
        assert all(number(row[3]) > 0 for row in rows)
        assert says(table, "tiny, random weights, bfloat16", "by cuDNN: it needs a GPU")

    def test_a_model_reads_the_shipped_text(self, llama):
        options = ["--tokens", 20, "--dtype", "float32", "--repeats", 1]
        table = made("bench", "prefill", "--model", llama, "--device", "cpu", *options)
        assert says(table, "Prefill: llama, float32")
        assert len(rows_of(table)) == 4

    def test_a_random_llama_has_the_type_that_was_asked_for(self):
        model = random_llama("tiny", torch.bfloat16, CPU)
        assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
        assert not model.module.training
        assert model.max_tokens == 131_072


def test_tile_sizes_are_not_measured_without_a_gpu(tmp_path):
    options = ["--device", "cpu", "--out", tmp_path / "results.md"]
    assert says(refused("bench", "tune", *options), "the device is cpu")
    assert not (tmp_path / "results.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("kernels --tokens 1", "got '1'"),
        ("kernels --heads 5 --kv-heads 2", "--heads 5 with --kv-heads 2"),
        ("kernels --routes cudnn,best", "Choose from cudnn, flash"),
        ("kernels --passes some", "Choose from all, basic"),
        ("kernels --routes ,", "names nothing"),
        ("kernels --dtype int8", "Choose float32"),
        ("kernels --dtype auto", "Choose float32"),
        ("kernels --device tpu", "Choose one of them"),
        ("kernels --data {llama} --layer 2", "layers 0 to 1"),
        ("kernels --data ./none", "Check the path"),
        ("kernels --repeats 0", "Invalid value for '--repeats'"),
        ("prefill --shape 9b", "Choose one of 8b, tiny"),
        ("prefill --shape tiny --tokens 131073", "at most 131,072"),
        ("prefill --model m --shape tiny", "Give one of them"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments, said, llama):
    assert says(refused("bench", *arguments.format(llama=llama).split()), said)


@pytest.mark.parametrize("command", ["tap {llama}", "kernels", "prefill --shape tiny"])
def test_a_place_that_cannot_be_written_is_told_first(command, llama, tmp_path):
    (tmp_path / "file").write_text("")
    words = command.format(llama=llama).split()
    line = refused("bench", *words, "--out", tmp_path / "file" / "results.md")
    assert says(line, "results.md cannot be written", "--out")


class TestRace:
    def test_a_route_that_fails_does_not_stop_the_others(self):
        def fails(error: Exception):
            def run():
                raise error

            return run

        entrants = [
            Entrant("slow", True, lambda: (Cost(4.0, None), [])),
            Entrant("fast", True, lambda: (Cost(2.0, 3 << 20), ["exact"])),
            Entrant("broken", True, fails(RuntimeError("no a|b\nat line 3"))),
            Entrant("large", False, fails(torch.cuda.OutOfMemoryError("2 GiB"))),
            Entrant("foreign", False, fails(NotApplicable("not installed"))),
            Entrant("ours", False, lambda: (Cost(1.0, None), [])),
        ]
        told: list[tuple[int, int]] = []
        rows, not_run = race(entrants, 1e3, lambda *n: told.append(n))
        assert rows == [
            ["slow", "4,000.000", "2.00", ""],
            ["fast", "2,000.000", "1.00", "3", "exact"],
            ["broken", "no a/b"],
            ["large", "out of memory"],
            ["ours", "1,000.000", "0.50", ""],
        ]
        assert not_run == {"foreign": "not installed"}
        assert told[-1] == (6, 6)

    def test_without_a_base_there_is_no_ratio(self):
        entrants = [Entrant("ours", False, lambda: (Cost(1.0, None), []))]
        assert race(entrants, 1.0, lambda *n: None)[0] == [["ours", "1.000", "", ""]]

    def test_a_mistake_of_the_caller_is_no_result(self):
        def work():
            raise InputError("Choose another.")

        with pytest.raises(InputError, match="another"):
            attempt(work)

    def test_what_would_not_fit_is_not_tried(self):
        reason = attempt(lambda: require_memory(1 << 60, "the dense map", CPU))
        assert says(str(reason), "the dense map needs 1,073,741,824.0 GiB", "are free")
        assert attempt(lambda: require_memory(1, "a byte", CPU)) is None

    def test_rows_are_filled_up(self):
        table = markdown("T", "c", "n.", ("tokens:", "route"), [["8"]], {"x": "no"})
        assert table.endswith("|---:|---|\n| 8 | |\n\nNot run:\n\n- x: no\n")


@pytest.mark.parametrize(
    ("effort", "seconds", "calls"),
    [
        (Effort(2), 0.001, 2),
        (Effort(None, 0.2), 0.01, 20),
        (Effort(None, 0.2), 5.0, 3),
        (Effort(None, 0.2), 1e-6, 100),
    ],
)
def test_calls_fill_the_budget_within_bounds(effort, seconds, calls):
    assert effort.calls(seconds) == calls


class TestSweep:
    """Every route ablates the same heads and finds the same NLL."""

    @pytest.mark.slow
    def test_every_route_has_a_row_and_the_same_numbers(self, tmp_path):
        model = save(tmp_path, "llama")
        routes = ["--routes", "hooks,tap,whole,sweep", "--threads", 1]
        table = made("bench", "sweep", model, "--tokens", 24, "--every", 3, *routes)
        rows = [line.split("|") for line in table.splitlines() if line[:3] == "| `"]
        rows += [line.split("|") for line in table.splitlines() if "a head" in line]
        assert len(rows) == 4
        assert all(float(row[-2]) < 1e-5 for row in rows)
        assert "Sweep: 3 heads of" in table

    def test_a_route_that_there_is_not(self, tmp_path):
        said = refused("bench", "sweep", tmp_path, "--routes", "magic")
        assert says(said, "'magic'", "lens, hooks, tap, whole, sweep")


class TestRetrieval:
    def test_every_route_has_a_row_with_its_ratios(self, monkeypatch):
        cost = {"n_runs": 9, "n_accepted": 7, "extra": 2**20, "cpu": 3.0}
        found = {
            "eager": {**cost, "wall": 6.0, "scores": [0.5, 0.0]},
            "interp": {**cost, "wall": 2.0, "scores": [0.5, 0.25]},
        }
        monkeypatch.setattr(retrieval, "_measure", lambda _, route, *rest: found[route])
        table = made("bench", "retrieval", "m", "--routes", "eager,interp")
        rows = [
            line.split("|")[2:-1] for line in table.splitlines() if line[:2] == "| "
        ]
        cells = [[cell.strip() for cell in row] for row in rows[1:]]
        assert cells[0] == ["6.0", "1.00", "3.0", "1.00", "1", "0.0e+00"]
        assert cells[1] == ["2.0", "3.00", "3.0", "1.00", "1", "2.5e-01"]
        assert says(table, "9 runs of m in 200, 500, 800 tokens", "7 of 9 needles")

    def test_a_route_that_there_is_not(self, tmp_path):
        said = refused("bench", "retrieval", tmp_path, "--routes", "magic")
        assert says(said, "'magic'", "eager, switched, interp")


class TestDeviation:
    def test_it_is_relative_to_the_largest_value(self):
        truth = {"a": torch.tensor([1.0, -4.0]), "index": torch.tensor([3])}
        found = {"a": torch.tensor([1.5, -4.0]), "index": torch.tensor([0])}
        assert deviation(found, truth) == 0.125
        assert deviation(truth, truth) == 0

    def test_a_missing_number_is_infinitely_off(self):
        truth = {"a": torch.tensor([1.0, torch.nan])}
        assert deviation(truth, truth) == 0
        assert deviation({"a": torch.tensor([1.0, 0.0])}, truth) == torch.inf


def test_peers_are_compared_with_sums_of_the_weights():
    call = random_call(33, 4, 2, 8, None, torch.float64, CPU)
    lse = reference.weights(call)[1]
    yardstick = Yardstick(call, lse)
    routes = peer_routes(call, lse, lambda: yardstick("basic"))
    truth = reference.weights(call)[0].sum(2)
    expected = {route.name: route.expected() for route in routes}
    torch.testing.assert_close(expected["flag-attn"]["total"], truth)
    torch.testing.assert_close(expected["flash-colsum"]["mean"], truth.mean(1) / 33)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 100])
def test_forwards_of_a_gpu_return_the_lse(window):
    options = ["--tokens", 512, *HEADS, "--head-dim", 64, "--passes", "lse"]
    options += [] if window is None else ["--window", window]
    table = made("bench", "kernels", *options, "--routes", ",".join(FORWARDS))
    rows = {row[1]: row for row in rows_of(table)}
    assert len(rows) == (4 if window is None else 3)
    for row in rows.values():
        assert number(row[5]) < 1e-4, row
        assert number(row[4]) > 0
