import pytest

from streamproc.cli.checks import (
    FAIL,
    OK,
    WARN,
    Gpu,
    check_built_in,
    check_code,
    check_device,
    check_memory,
    check_model,
    check_settings,
    check_state_dir,
    check_version,
    parse_gpu,
)
from streamproc.config import Config

GIB = 2**30


def test_settings_that_were_changed_are_listed_with_their_sources():
    assert check_settings(Config()).detail == "all default"
    changed = Config(sources={"engine.keep": "flag -X", "kafka.acks": "file a.toml"})
    assert check_settings(changed).detail == "2 not default: engine.keep (flag -X), kafka.acks (file a.toml)"


def test_a_missing_library_is_a_warning_with_the_line_that_installs_it():
    found = check_version("no-such-distribution", "")
    assert (found.state, found.mend) == (WARN, "pip install no-such-distribution")


def test_a_model_folder_needs_a_config(tmp_path):
    assert check_model(str(tmp_path), {}).state == FAIL
    (tmp_path / "config.json").write_text("{}")
    assert check_model(str(tmp_path), {}).state == OK


def test_the_built_in_models_need_no_network_but_one_must_have_been_installed(tmp_path):
    assert check_model("random-tiny", {}).detail == "random-tiny (built in, its words are noise)"
    assert check_built_in("market-tiny", tmp_path).state == FAIL
    (tmp_path / "config.json").write_text("{}")
    assert check_built_in("market-tiny", tmp_path).detail == "market-tiny (built in)"


@pytest.mark.parametrize("model", ["./none", "/none/none", "~/no-such-folder-here"])
def test_a_model_folder_that_is_not_there_fails(model):
    assert check_model(model, {}).state == FAIL


def test_a_hub_model_is_fine_once_downloaded(tmp_path):
    environ = {"HF_HOME": str(tmp_path)}
    assert check_model("org/name", environ).state == WARN
    (tmp_path / "hub" / "models--org--name" / "snapshots").mkdir(parents=True)
    assert check_model("org/name", environ).state == OK


@pytest.mark.parametrize(
    ("device", "gpu", "state"),
    [
        ("auto", None, OK),
        ("auto", Gpu("H", GIB), OK),
        ("cuda", None, FAIL),
        ("cuda:1", Gpu("H", GIB), OK),
        ("cpu", None, OK),
    ],
)
def test_a_gpu_that_is_asked_for_must_be_there(device, gpu, state):
    assert check_device(device, gpu).state == state


@pytest.mark.parametrize(
    ("kv_bytes", "free_bytes", "state"),
    [(GIB, 4 * GIB, OK), (3 * GIB, 4 * GIB, WARN), (5 * GIB, 4 * GIB, FAIL), (GIB, None, WARN)],
)
def test_the_kv_pool_must_fit(kv_bytes, free_bytes, state):
    found = check_memory(kv_bytes, free_bytes, "here")
    assert found.state == state
    assert bool(found.mend) == (state != OK)


def test_a_state_folder_that_can_be_made_is_fine_and_is_not_made(tmp_path):
    folder = tmp_path / "a" / "b"
    assert check_state_dir(folder).state in (OK, WARN)
    assert not folder.parent.exists()


def test_a_state_folder_under_a_file_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_state_dir(tmp_path / "file" / "state").state == FAIL


def test_what_nvidia_smi_prints_is_read():
    assert parse_gpu("NVIDIA H200, 143000\nNVIDIA H200, 1\n") == Gpu("NVIDIA H200", 143_000 * 2**20)
    assert parse_gpu("No devices were found\n") is None
    assert parse_gpu("") is None


@pytest.mark.parametrize(
    ("finds_triton", "compiler", "state", "detail"),
    [
        (True, "gcc", OK, "Triton kernels, on the GPU; torch for models that they do not know"),
        (True, "none", WARN, "torch, on the GPU: Triton finds no C compiler"),
        (False, "gcc", WARN, "torch, on the GPU: triton is not installed"),
    ],
)
def test_kernels_for_gpus_need_triton_and_a_compiler(finds_triton, compiler, state, detail, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("streamproc.cli.checks.find_spec", lambda name: object() if finds_triton else None)
    monkeypatch.setattr("streamproc.cli.checks.shutil.which", lambda name: name if name == compiler else None)
    found = check_code(uses_gpu=True)
    assert (found.state, found.detail) == (state, detail)
    assert bool(found.mend) == (state == WARN)
