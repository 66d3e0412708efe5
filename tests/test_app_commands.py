"""What the commands make of right arguments, and how they show progress."""

import pytest
from command_line import copy, files_of, made, refused, save, says, write_words
from tiny_gguf import write_tiny_gguf

import interp
from interp.app import commands
from interp.app.progress import progress_bars


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture(scope="module")
def atlas(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    text = write_words(folder / "words.txt")
    names = ["--detectors", "entropy,local,sinks"]
    made("atlas", llama, "--text", text, "--out", folder / "atlas", *names)
    return folder / "atlas"


@pytest.fixture
def text(tmp_path):
    return write_words(tmp_path / "words.txt")


@pytest.mark.parametrize("arguments", ["--help", "atlas -h", "bench tap --help"])
def test_help_tells_what_there_is(arguments):
    assert "Usage: interp" in made(*arguments.split())


def test_the_version_is_told():
    assert made("--version") == f"interp {commands.version('interp')}"


def test_the_catalog_is_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    listed = made("models")
    assert says(listed, "smollm2-135m", "98 MB", "Apache-2.0", "no")


class TestTrace:
    def test_it_holds_exactly_the_statistics_asked_for(self, llama, text, tmp_path):
        out = tmp_path / "t.zarr"
        asked = ["--statistics", "entropy,received"]
        assert made("trace", llama, "--text", text, "--out", out, *asked) == str(out)
        trace = interp.open_trace(out)
        assert set(trace.children) == {"self"}
        assert set(trace["self"].data_vars) == {"entropy", "received"}
        assert trace.attrs["text_name"] == "words.txt"

    def test_by_default_it_holds_every_row_and_column(self, llama, text, tmp_path):
        made("trace", llama, "--text", text, "--out", tmp_path / "t.zarr")
        trace = interp.open_trace(tmp_path / "t.zarr")
        assert {"lse", "fai", "max_key", "edges"} <= set(trace["self"].data_vars)
        assert "norm" in trace["residual"].data_vars

    def test_the_stream_alone(self, llama, text, tmp_path):
        options = ["--out", tmp_path / "t.zarr", "--statistics", "residual"]
        made("trace", llama, "--text", text, *options)
        assert set(interp.open_trace(tmp_path / "t.zarr").children) == {"residual"}

    def test_again_it_changes_nothing(self, llama, text, tmp_path):
        command = ["trace", llama, "--text", text, "--out", tmp_path / "t.zarr"]
        first = made(*command)
        before = files_of(tmp_path / "t.zarr")
        assert made(*command) == first
        assert files_of(tmp_path / "t.zarr") == before

    def test_a_place_that_holds_something_else_is_kept(self, llama, text, tmp_path):
        command = ["trace", llama, "--out", tmp_path / "out", "--text"]
        made(*command, text)
        before = files_of(tmp_path / "out")
        other = write_words(tmp_path / "other.txt", 9)
        assert says(refused(*command, other), "another run's results", "path")
        assert files_of(tmp_path / "out") == before
        mine = files_of(llama)
        foreign = ["trace", llama, "--text", text, "--out", llama]
        assert says(refused(*foreign), "not a trace store", "Choose another path")
        assert files_of(llama) == mine

    @pytest.mark.parametrize("place", ["words.txt", "words.txt/t.zarr"])
    def test_a_place_that_cannot_be_written(self, place, llama, text, tmp_path):
        before = text.read_bytes()
        line = refused("trace", llama, "--text", text, "--out", tmp_path / place)
        assert says(line, place, "another path")
        assert text.read_bytes() == before

    def test_a_gguf_file_is_a_model(self, text, tmp_path):
        write_tiny_gguf(tmp_path / "tiny.gguf")
        text.write_text("ab!", "utf-8")
        options = ["--out", tmp_path / "t.zarr", "--statistics", "entropy"]
        made("trace", tmp_path / "tiny.gguf", "--text", text, *options)
        assert interp.open_trace(tmp_path / "t.zarr").attrs["model"] == "tiny.gguf"


class TestHeads:
    def test_the_strongest_come_first(self, atlas):
        table = made("heads", atlas, "--by", "sinks", "--top", 3)
        assert says(table, "sinks", "sinks_low", "kv_head")
        rows = [line.split() for line in table.splitlines() if "L" in line]
        strengths = [float(row[5]) for row in rows]
        assert len(rows) == 3
        assert strengths == sorted(strengths, reverse=True)

    def test_the_first_detector_is_the_default(self, atlas):
        assert "entropy_low" in made("heads", atlas)

    def test_named_heads_show_every_detector(self, atlas):
        table = made("heads", atlas, "--heads", "L1.H2,L0.H3")
        assert says(table, "L1.H2", "L0.H3", "entropy", "sinks")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--heads", "L9.H0"], "head L9.H0 was asked for"),
            (["--heads", "L0.H4"], "heads H0 to H3"),
            (["--heads", "first"], "a head is written L12.H7"),
            (["--by", "sink"], "Choose one of entropy, local, sinks"),
            (["--by", "sinks_low"], "no detector 'sinks_low'"),
            (["--by", "local"], "local has no value at any head"),
        ],
    )
    def test_what_there_is_not(self, options, said, atlas):
        assert says(refused("heads", atlas, *options), said)

    def test_a_folder_without_an_atlas(self, llama):
        line = refused("heads", llama)
        assert says(line, "holds no atlas.csv", "`interp atlas`")

    def test_an_atlas_that_is_cut_off(self, atlas, tmp_path):
        spoiled = copy(atlas, tmp_path / "spoiled")
        (spoiled / "atlas.csv").write_text("layer")
        assert says(refused("heads", spoiled), "atlas.csv", "`interp atlas`")


def test_an_error_clears_the_bars_of_a_terminal(monkeypatch, capsys):
    def fails():
        with progress_bars() as progress:
            progress("loading", 0, 0)
            progress("layers", 1, 2)
            raise ValueError("stop")

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match="stop"):
        fails()
    shown = capsys.readouterr().err
    erase = "\x1b[2K"
    assert says(shown, "loading", "layers", "1/2")
    assert shown.endswith(erase)


def test_where_no_terminal_is_no_bar_is_drawn(capsys):
    with progress_bars() as progress:
        progress("layers", 1, 2)
    assert capsys.readouterr().err == ""
