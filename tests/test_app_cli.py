"""Every wrong argument gives one line and exit code 2; Ctrl-C gives 130."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers as hf
from command_line import (
    PROGRAM,
    hears_ctrl_c,
    made,
    only_line,
    refused,
    run,
    save,
    says,
    write_words,
)
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.app import commands


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def llama(root):
    return save(root, "llama")


@pytest.fixture
def text(tmp_path):
    return write_words(tmp_path / "words.txt")


class TestTexts:
    @pytest.fixture(params=["atlas", "trace"])
    def command(self, request, llama, tmp_path):
        return [request.param, llama, "--out", tmp_path / "out", "--text"]

    def test_no_such_file(self, command, tmp_path):
        line = refused(*command, tmp_path / "none.txt")
        assert says(line, "none.txt does not exist", "Give the path")
        assert not (tmp_path / "out").exists()

    def test_a_path_below_a_file(self, command, text):
        assert says(refused(*command, text / "x"), "words.txt/x", "path")

    def test_a_folder(self, command, tmp_path):
        assert says(refused(*command, tmp_path), "is a folder", "text file")

    @pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
    def test_an_empty_text(self, command, content, text):
        text.write_text(content, "utf-8")
        assert says(refused(*command, text), "words.txt is empty", "at least one word")

    def test_a_text_that_is_not_utf_8(self, command, text):
        text.write_bytes("w3 w4 café".encode("latin-1"))
        assert says(refused(*command, text), "not UTF-8: byte 9", "iconv")

    def test_a_text_longer_than_the_context(self, command, text, tmp_path):
        write_words(text, 70)
        line = refused(*command, text)
        assert says(line, "70 tokens", "made for 64", "--max-tokens 64")
        assert not (tmp_path / "out").exists()
        made(*command, text, "--max-tokens", 64)

    def test_the_one_of_several_that_is_too_long_is_named(self, llama, text, tmp_path):
        longer = write_words(tmp_path / "longer.txt", 65)
        line = refused("atlas", llama, "--text", text, "--text", longer)
        assert says(line, "longer.txt", "65 tokens", "--max-tokens 64")

    def test_a_byte_order_mark_is_no_token(self, llama, text, tmp_path):
        text.write_text("\ufeffw3 w4", "utf-8")
        made("trace", llama, "--text", text, "--out", tmp_path / "t.zarr")
        trace = interp.open_trace(tmp_path / "t.zarr")["self"].to_dataset()
        assert list(trace["query_token"].values) == ["w3", "w4"]


class TestModels:
    @pytest.fixture(params=["atlas", "trace"])
    def refusal(self, request, text, tmp_path):
        out = tmp_path / "out"

        def line(model, *options):
            said = refused(request.param, model, "--text", text, "--out", out, *options)
            assert not out.exists()
            return said

        return line

    def test_no_such_path(self, refusal, tmp_path):
        assert says(refusal(tmp_path / "none"), "no such file or folder", "path")

    def test_a_mistyped_name(self, refusal):
        assert says(refusal("smolm2-135m"), "Did you mean 'smollm2-135m'?")

    def test_a_hub_model_that_cannot_be_had(self, refusal):
        assert says(refusal("nobody/nothing"), "nobody/nothing", "connection")

    def test_a_folder_that_is_no_model(self, refusal, text, tmp_path):
        (tmp_path / "folder").mkdir()
        text.rename(tmp_path / "folder" / "notes.txt")
        write_words(text)
        line = refusal(tmp_path / "folder")
        assert says(line, "no config.json", "notes.txt", "Name the folder")

    def test_a_file_of_another_kind(self, refusal, llama):
        line = refusal(llama / "model.safetensors")
        assert says(line, "not named .gguf", "Name a .gguf file")

    def test_a_truncated_gguf(self, refusal, tmp_path):
        path = tmp_path / "cut.gguf"
        write_tiny_gguf(path)
        os.truncate(path, 20_000)
        assert says(refusal(path), "holds 20,000 bytes", "again")

    def test_a_file_that_only_claims_to_be_gguf(self, refusal, tmp_path):
        (tmp_path / "false.gguf").write_bytes(b"PK\3\4 a zip file")
        assert says(refusal(tmp_path / "false.gguf"), "instead of b'GGUF'")

    def test_weights_that_are_not_numbers(self, refusal, tmp_path):
        module, _ = tiny("llama")
        with torch.no_grad():
            module.model.layers[1].mlp.up_proj.weight[0, :3] = torch.nan
        hf.utils.logging.disable_progress_bar()
        module.save_pretrained(tmp_path / "broken")
        tiny_tokenizer().save_pretrained(tmp_path / "broken")
        line = refusal(tmp_path / "broken")
        assert says(line, "NaN", "layer 1", "up_proj.weight (3 values)", "again")

    def test_a_model_without_attention(self, refusal, root):
        line = refusal(save(root, "mamba"))
        assert says(line, "MambaForCausalLM has no attention", "Choose a model")

    def test_attention_that_cannot_be_reached(self, refusal, root):
        line = refusal(save(root, "longformer"))
        words = "LongformerSelfAttention", "attention interface", "Choose a model"
        assert says(line, *words)

    @pytest.mark.parametrize(
        ("family", "input_name"),
        [("whisper", "input_features"), ("vit", "pixel_values")],
    )
    def test_a_model_that_reads_no_text(self, family, input_name, refusal, root):
        assert says(refusal(save(root, family)), family, input_name)

    def test_a_model_without_a_tokenizer(self, refusal, tmp_path):
        hf.utils.logging.disable_progress_bar()
        tiny("llama")[0].save_pretrained(tmp_path / "mute")
        assert says(refusal(tmp_path / "mute"), "tokenizer", "mute")

    def test_an_unknown_device(self, refusal, llama):
        line = refusal(llama, "--device", "cuda:99")
        assert says(line, "'cuda:99'", "has cpu", "'auto'")

    def test_an_unknown_type(self, refusal, llama):
        line = refusal(llama, "--dtype", "float99")
        assert says(line, "'float99'", "Choose float32")

    def test_too_few_tokens(self, refusal, llama):
        line = refusal(llama, "--max-tokens", "0")
        assert says(line, "--max-tokens", "interp", "--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "Missing command. See interp --help."),
        ("atlass m", "No such command 'atlass'"),
        ("atlas", "Missing argument 'model'. See interp atlas --help."),
        ("atlas m --txt a", "No such option: --txt"),
        ("atlas m --seed one", "Invalid value for '--seed'"),
        ("atlas m --max-tokens 0", "Invalid value for '--max-tokens'"),
        ("atlas m --detectors sinkz", "Did you mean 'sinks'?"),
        ("atlas m --detectors ,", "--detectors names nothing"),
        ("atlas m --detectors sinks,sinks", "holds one sinks"),
        ("trace m --text {text}", "Missing option '--out'"),
        ("trace m --out t", "Missing option '--text'"),
        ("trace m --text {text} --out t --statistics entropi", "'entropy'?"),
        ("trace m --text {text} --out t --statistics ,", "names nothing"),
        ("heads", "Missing argument"),
        ("heads none", "none holds no atlas.csv"),
        ("heads . --top 0", "Invalid value for '--top'"),
        ("models more", "unexpected extra argument"),
        ("bench", "Missing command. See interp bench --help."),
        ("bench tap m --tokens 64,many", "got 'many'"),
        ("bench tap m --tokens 1", "got '1'"),
        ("bench tap m --repeats 0", "Invalid value for '--repeats'"),
    ],
)
def test_a_wrong_command_line(arguments, said, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says(refused(*arguments.format(text=text).split()), said)
    assert list(tmp_path.iterdir()) == [text]


class TestProcess:
    """What only a real process shows."""

    def test_an_error_is_the_only_line_and_success_is_quiet(
        self, llama, text, tmp_path
    ):
        command = [*PROGRAM, "trace", llama, "--text", text, "--statistics", "lse"]
        done = ended(*command, "--out", tmp_path / "t.zarr")
        assert (done.stdout, done.stderr) == (f"{tmp_path / 't.zarr'}\n", "")
        write_words(text, 70)
        failed = ended(*command, "--out", tmp_path / "long.zarr")
        assert (failed.returncode, failed.stdout) == (2, "")
        assert says(only_line(failed.stderr), "70 tokens", "--max-tokens 64")

    @pytest.mark.parametrize("module", ["typer", "torch", "interp.tracing"])
    def test_ctrl_c_while_a_module_is_imported(self, module, llama, text, tmp_path):
        program = f"""
import os, signal, sys
class Interrupt:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
from interp.app.cli import main
main()
"""
        options = ["trace", llama, "--text", text, "--out", tmp_path / "t.zarr"]
        stopped = ended(sys.executable, "-c", program, *options)
        assert (stopped.returncode, stopped.stdout) == (130, "")
        assert says(only_line(stopped.stderr), "Interrupted", "the same command")

    def test_ctrl_c_while_a_write_is_under_way(self):
        program = """
import asyncio
from zarr.core.sync import _get_loop
from interp.app import commands
from interp.app.cli import main
def run():
    asyncio.run_coroutine_threadsafe(asyncio.sleep(60), _get_loop())
    raise KeyboardInterrupt
commands.run = run
main()
"""
        stopped = ended(sys.executable, "-c", program)
        assert (stopped.returncode, stopped.stdout) == (130, "")
        assert says(only_line(stopped.stderr), "Interrupted", "the same command")


def ended(*command: object) -> subprocess.CompletedProcess[str]:
    """A process that ran to its end."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=hears_ctrl_c,
    )


def test_ctrl_c_in_a_destructor_is_not_lost(monkeypatch):
    class Object:
        def __del__(self):
            raise KeyboardInterrupt

    def work():
        Object()
        for _ in range(1_000):
            time.sleep(0.01)
        return 0

    before = sys.unraisablehook
    monkeypatch.setattr(commands, "run", work)
    # A process that was started in the background ignores Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = run("models")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (stopped.code, stopped.out) == (130, "")
    assert says(only_line(stopped.err), "Interrupted")
    assert sys.unraisablehook is before


BUSY = """
import time
from interp.app import commands
from zarr.core import sync

def run():
    sync._get_loop().call_soon_threadsafe(time.sleep, 5)
    raise KeyboardInterrupt

commands.run = run
from interp.app.cli import main
main()
"""
"""Interrupted while Zarr is in the middle of something that takes its time."""


def test_writes_under_way_say_nothing_when_a_command_is_interrupted():
    done = ended(sys.executable, "-c", BUSY)
    assert done.returncode == 130
    assert says(only_line(done.stderr), "Interrupted", "run the same command")


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def work():
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "run", work)
    with pytest.raises(ZeroDivisionError):
        run("models")
