import json
import os
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from streamproc.cli.common import Call, model_option, shared_options
from streamproc.cli.main import COMMANDS, Root, cli
from streamproc.cli.run import where_snapshots_go
from streamproc.config import Snapshots
from streamproc.errors import BadInput, Fenced, Refused, Unavailable, Usage

HEAVY = ("torch", "triton", "transformers", "tokenizers", "pyarrow")
MODULES = tuple(target.partition(":")[0] for target, _ in COMMANDS.values())
MAX_START_S = 0.5
SCREEN_LINES = 40
PROBE = """
import sys
from streamproc.cli.main import cli
try:
    cli.main(sys.argv[1:])
finally:
    for modules in {watched!r}:
        print(sorted(set(modules) & set(sys.modules)), file=sys.stderr)
"""


@click.command()
@click.argument("deed", default="done")
@model_option
@shared_options
def probe(call: Call, deed: str) -> None:
    """Does as it is told."""
    errors = {"usage": Usage, "gone": Unavailable, "no": Refused, "bad": BadInput, "fenced": Fenced,
              "binary": Usage}  # fmt: skip
    if deed in errors:
        raise errors[deed]("it is \udcff\x1b[31mso" if deed == "binary" else "it is\nso")
    if deed == "interrupt":
        raise KeyboardInterrupt
    if deed == "answer-no":
        raise click.exceptions.Exit(3)
    if deed == "settings":
        call.emit({"keep": call.config.engine.keep, "kafka": call.config.kafka}, str(call.config.engine.keep))
    elif deed == "model":
        call.emit({"source": call.config.sources.get("engine.model")}, call.config.engine.model)
    elif deed == "stream":
        for i in range(3):
            call.line({"i": i}, f"line {i}")
    else:
        call.note("by the way")
        call.emit({"deed": deed}, f"{deed}!")


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """`command_line("probe", ...)` -> the result; nothing of this machine's settings reaches it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("STREAMPROC_")]:
        monkeypatch.delenv(name)
    root = Root("streamproc")
    root.add_command(probe)
    group = click.Group("noun")
    group.add_command(probe, "verb")
    root.add_command(group)
    return lambda *args: CliRunner().invoke(root, list(args))


def leaves(command, words):
    """Every command that does something, with the words that call it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), (*words, name))
    else:
        yield words, command


def run_help(*words, cwd):
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(watched=(HEAVY, MODULES)), *words, "--help"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return time.perf_counter() - started, result


@pytest.mark.parametrize("words", [(), ("query",), ("answers",), ("produce",)], ids=" ".join)
def test_help_starts_fast_and_without_heavy_libraries(words, tmp_path):
    runs = [run_help(*words, cwd=tmp_path) for _ in range(3)]
    assert all(result.stderr.splitlines()[0] == "[]" for _, result in runs)
    assert min(seconds for seconds, _ in runs) <= MAX_START_S


def test_the_list_of_commands_is_printed_without_importing_one(tmp_path):
    _, result = run_help(cwd=tmp_path)
    assert all(name in result.stdout for name in COMMANDS)
    assert result.stderr.splitlines()[1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_shared_flags_and_explains_itself_on_one_screen(name):
    for words, command in leaves(cli.get_command(click.Context(cli), name), (name,)):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        missing = {
            "-b",
            "--bootstrap-server",
            "--bootstrap-servers",
            "-F",
            "-X",
            "--config",
            "--format",
            "--json",
        } - flags
        assert not missing, f"{' '.join(words)} lacks {missing}"
        assert command.help, f"{' '.join(words)} has no help"
        lines = CliRunner().invoke(cli, [*words, "--help"]).output.count("\n")
        assert lines <= SCREEN_LINES, f"{' '.join(words)} --help has {lines} lines"


def test_the_version_is_told():
    assert CliRunner().invoke(cli, ["--version"]).output.startswith("streamproc ")


def test_a_result_is_text_and_notes_are_not_in_it(command_line):
    result = command_line("probe")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "done!\n", "by the way\n")


@pytest.mark.parametrize("flags", [["--json"], ["--format", "json"], ["--format=json"]])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_result_is_one_json_object_where_json_is_asked_for(command_line, flags, place):
    result = command_line("noun", "verb", *([*flags, "well"] if place == "before" else ["well", *flags]))
    assert json.loads(result.stdout) == {"_command": "noun verb", "_version": 1, "deed": "well"}


def test_a_stream_is_one_json_object_a_line(command_line):
    lines = command_line("probe", "stream", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"i": 0}, {"i": 1}, {"i": 2}]


@pytest.mark.parametrize(
    ("deed", "code", "status"),
    [
        ("usage", "USAGE", 2),
        ("gone", "UNAVAILABLE", 1),
        ("no", "REFUSED", 1),
        ("bad", "BAD_INPUT", 2),
        ("fenced", "FENCED", 1),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(command_line, deed, code, status):
    result = command_line("noun", "verb", deed)
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", "streamproc: it is so\n")
    result = command_line("noun", "verb", deed, "--json")
    assert (result.exit_code, result.stderr) == (status, "streamproc: it is so\n")
    assert json.loads(result.stdout) == {"_command": "noun verb", "_version": 1, "error": code, "message": "it is so"}


def test_what_a_terminal_would_obey_is_written_out_in_an_error(command_line):
    result = command_line("probe", "binary", "--json")
    assert (result.exit_code, result.stderr) == (2, "streamproc: it is \\udcff\\x1b[31mso\n")
    assert json.loads(result.stdout)["message"] == "it is \\udcff\\x1b[31mso"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["noun", "verb", "--formt", "text"], "No such option '--formt'"),
        (["noun", "verb", "--format", "xml"], "'xml' is not one of"),
        (["noun", "verb", "a", "b"], "unexpected extra argument (b)"),
        (["noun", "vreb"], "No such command 'vreb'"),
        (["doctr"], "no command 'doctr', did you mean 'doctor'?"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2_in_json_too(command_line, args, said):
    result = command_line(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    result = command_line(*args, "--json")
    assert result.exit_code == 2
    doc = json.loads(result.stdout)
    assert (doc["_version"], doc["error"]) == (1, "USAGE")
    assert said in doc["message"]


@pytest.mark.parametrize("args", [["config", "show"], ["config", "show", "--json"], ["nonsense", "--json"]])
def test_an_output_that_is_full_is_one_line(args, tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "streamproc", *args]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "streamproc: the output cannot be written: No space left on device"
    assert "Traceback" not in result.stderr


def test_a_command_may_answer_no_and_may_be_interrupted(command_line):
    assert command_line("probe", "answer-no").exit_code == 3
    assert command_line("probe", "interrupt").exit_code == 130


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path):
    code = "import click\nfrom streamproc.cli.main import Root\nfrom streamproc.cli.common import shared_options\n"
    code += "@click.command()\n@shared_options\ndef flood(call):\n  while True: call.line({}, 'x' * 1000)\n"
    code += "root = Root('streamproc'); root.add_command(flood); root.main(['flood'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_settings_come_with_the_call(command_line):
    result = command_line("probe", "settings", "-X", "engine.keep=0.25", "-b", "k:1", "-X", "linger.ms=7", "--json")
    doc = json.loads(result.stdout)
    assert (doc["keep"], doc["kafka"]) == (0.25, {"bootstrap.servers": "k:1", "linger.ms": "7"})


@pytest.mark.parametrize(
    ("flags", "model", "source"),
    [
        ((), "market-tiny", None),
        (("-X", "engine.model=a"), "a", "flag -X"),
        (("--model", "b"), "b", "flag --model"),
        (("--model", "b", "-X", "engine.model=a"), "b", "flag --model"),
    ],
    ids=["neither", "-X", "--model", "both"],
)
def test_the_flag_for_the_model_outranks_all_else(command_line, flags, model, source):
    assert command_line("probe", "model", *flags).stdout == f"{model}\n"
    assert json.loads(command_line("probe", "model", *flags, "--json").stdout)["source"] == source


def test_a_model_without_a_name_is_refused_with_its_flag(command_line):
    result = command_line("probe", "model", "--model", " ")
    assert result.exit_code == 2
    assert result.stderr == (
        "streamproc: engine.model = ' ' (flag --model): not possible; use a folder, a hub name or market-tiny\n"
    )


@pytest.mark.parametrize("name", ["run", "demo"])
def test_commands_that_load_a_model_take_its_flag(name):
    (option,) = [item for item in cli.get_command(click.Context(cli), name).params if "--model" in item.opts]
    assert option.help == "Folder or hub name of a model, or market-tiny."


def test_a_wrong_setting_stops_the_command_with_one_line(command_line):
    result = command_line("probe", "settings", "-X", "engine.keep=7")
    assert result.exit_code == 2
    assert result.stderr == "streamproc: engine.keep = 7.0 (flag -X): out of range; use 0 to 0.9\n"


def test_what_was_left_out_of_the_settings_is_told_once_on_stderr(command_line, monkeypatch):
    monkeypatch.setenv("STREAMPROC_PORT", "80")
    result = command_line("probe", "settings", "-X", "key.serializer=x")
    assert result.stdout == "0.25\n"
    assert result.stderr.splitlines() == [
        "warning: STREAMPROC_PORT sets nothing",
        "warning: Kafka properties that only Java knows were left out: key.serializer",
    ]


def test_config_show_tells_values_and_sources(command_line):
    result = command_line("config", "show", "-X", "engine.keep=0.25")
    assert "keep = 0.25  # flag -X" in result.stdout
    result = command_line("config", "show", "-X", "sasl.password=hunter2", "--json")
    assert {"setting": "kafka.sasl.password", "value": "***", "source": "flag -X"} in json.loads(result.stdout)[
        "settings"
    ]


def test_config_show_tells_what_kafka_clients_get(command_line):
    result = command_line("config", "show", "--kafka", "-X", "ssl.truststore.location=ca.pem", "--json")
    assert json.loads(result.stdout)["kafka"] == {"bootstrap.servers": "127.0.0.1:9092", "ssl.ca.location": "ca.pem"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "none, a restart computes all contexts again (snapshots.url)"),
        ("/data/kv", "every 30 s to /data/kv"),
        ("s3://key:secret@bucket/kv", "every 30 s to s3://bucket/kv"),
        ("s3://key:se/cr?et@bucket/kv", "every 30 s to s3://bucket/kv"),
        ("s3://b/kv?endpoint=http://key:secret@host:1", "every 30 s to s3://b/kv?endpoint=http://host:1"),
        ("s3://b/a@b?endpoint=http://host:1", "every 30 s to s3://b/a@b?endpoint=http://host:1"),
    ],
)
def test_a_worker_says_where_its_snapshots_go_and_no_password(url: str, expected: str) -> None:
    assert where_snapshots_go(Snapshots(url=url)) == expected


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_config_show_tells_no_password_of_a_store(command_line, words) -> None:
    result = command_line("config", "show", "-X", "snapshots.url=s3://key:hidden@bucket/kv", *words)
    assert "s3://bucket/kv" in result.stdout
    assert "hidden" not in result.stdout
