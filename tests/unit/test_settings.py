import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from streamproc.config import Config, check_config, known_settings
from streamproc.errors import Usage
from streamproc.settings import load_config, unknown_variables
from streamproc.settings_text import print_config, settings_doc, settings_table

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder; settings files of the checkout do not reach into the tests."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(**given):
    with pytest.raises(Usage) as caught:
        load_config(**{"environ": {}, **given})
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder, text, name="streamproc.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_the_defaults_pass_their_own_checks(folder):
    config = load_config(environ={})
    check_config(config)
    assert config == Config()


def test_every_setting_is_documented_in_one_line():
    for key, known in known_settings().items():
        assert known.rule.doc, key
        assert "\n" not in known.rule.doc, key


def test_flags_outrank_environment_outranks_file_outranks_default(folder):
    written(folder, "[engine]\nkeep = 0.1\nthreads = 1\nstep_tokens = 100\n")
    environ = {"STREAMPROC_ENGINE_KEEP": "0.2", "STREAMPROC_ENGINE_THREADS": "2"}
    config = load_config(overrides=["engine.keep=0.3"], environ=environ)
    engine = config.engine
    assert (engine.keep, engine.threads, engine.step_tokens, engine.block_size) == (0.3, 2, 100, 16)
    assert config.sources == {
        "engine.keep": "flag -X",
        "engine.threads": "environment STREAMPROC_ENGINE_THREADS",
        "engine.step_tokens": "file streamproc.toml",
    }


def test_a_kafka_property_ranks_b_over_x_over_environment_over_properties_file_over_file(folder):
    written(folder, '[kafka]\n"bootstrap.servers" = "toml:1"\n"linger.ms" = 1\n"client.id" = "toml"\nacks = "all"\n')
    properties = written(folder, "bootstrap.servers=f:1\nlinger.ms=2\nclient.id=f\n", "client.properties")
    given = {
        "command_config": properties,
        "overrides": ["bootstrap.servers=x:1", "linger.ms=4"],
        "environ": {"STREAMPROC_BOOTSTRAP_SERVERS": "e:1", "STREAMPROC_KAFKA_LINGER_MS": "3"},
    }
    expected = {"linger.ms": "4", "client.id": "f", "acks": "all"}
    assert load_config(**given).kafka == {"bootstrap.servers": "x:1", **expected}
    config = load_config(**given, bootstrap_servers="b:1")
    assert config.kafka == {"bootstrap.servers": "b:1", **expected}
    assert config.sources["kafka.bootstrap.servers"] == "flag -b"
    assert config.sources["kafka.client.id"] == f"file {properties}"
    del given["overrides"]
    assert load_config(**given).kafka["bootstrap.servers"] == "e:1"


def test_a_given_settings_file_is_read_instead_of_the_one_here(folder):
    written(folder, "[engine]\nkeep = 0.1\n")
    other = written(folder, "[engine]\nkeep = 0.2\n", "other.toml")
    assert load_config(other, environ={}).engine.keep == 0.2


def test_a_missing_settings_file_is_refused_by_name(folder):
    assert refusal(file=folder / "none.toml").endswith("none.toml: No such file or directory")
    assert "No such file" in refusal(command_config=folder / "none.properties")


def test_environment_names_of_kafka_properties_have_underscores_for_dots(folder):
    config = load_config(environ={"STREAMPROC_KAFKA_SASL_PASSWORD": "s3cret"})
    assert config.kafka == {"sasl.password": "s3cret"}


def test_an_empty_variable_counts_as_not_set(folder):
    environ = {"STREAMPROC_ENGINE_KEEP": "", "STREAMPROC_BOOTSTRAP_SERVERS": "", "STREAMPROC_KAFKA_ACKS": ""}
    assert load_config(environ=environ) == Config()


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["engine.context_tokens=32K"], "engine.context_tokens", 32_768),
        (["engine.context_tokens=25.6k"], "engine.context_tokens", 25_600),
        (["engine.kv_bytes=1GiB"], "engine.kv_bytes", 2**30),
        (["engine.kv_bytes=256MB"], "engine.kv_bytes", 256_000_000),
        (["worker.max_record_bytes=64K"], "worker.max_record_bytes", 65_536),
        (["worker.commit_interval_ms=2.5s"], "worker.commit_interval_ms", 2_500),
        (["worker.commit_interval_ms=250"], "worker.commit_interval_ms", 250),
        (["snapshots.interval_s=2m"], "snapshots.interval_s", 120),
        (["snapshots.max_age_s=90"], "snapshots.max_age_s", 90),
        (["worker.slot="], "worker.slot", ""),
        (['prompts.stop=["a", "b"]'], "prompts.stop", ("a", "b")),
        (["prompts.stop=END"], "prompts.stop", ("END",)),
        (["prompts.system=a=b"], "prompts.system", "a=b"),
        (["snapshots.standby=true", "snapshots.url=/x"], "snapshots.standby", True),
        (["snapshots.standby=false"], "snapshots.standby", False),
    ],
)
def test_values_are_read_as_people_write_them(folder, overrides, key, value):
    assert load_config(overrides=overrides, environ={}).value(key) == value


@pytest.mark.parametrize(
    ("override", "what_would_do"),
    [
        ("engine.keep=1", "use 0 to 0.9"),
        ("engine.keep=nan", "use 0 to 0.9"),
        ("engine.keep=much", "use 0 to 0.9"),
        ("engine.block_size=24", "use 1, 2, 4, 8, 16"),
        ("engine.context_tokens=1000", "is not a multiple of engine.block_size = 16; use 992 or 1008"),
        ("engine.context_tokens=1.5", "not a whole number; use 32 to 16777216 tokens"),
        ("engine.dtype=fp8", "use auto, float32, bfloat16"),
        ("engine.device=tpu", "use auto, cpu, cuda or cuda:0"),
        ("engine.model= ", "use a folder, a hub name or market-tiny"),
        ("engine.threads=-1", "use 0 to 1024"),
        ("worker.session_by=user", "use key, partition"),
        ("worker.commit_interval_ms=2 hours", "use 1 to 60000 ms"),
        ("snapshots.interval_s=500ms", "not a whole number; use 1 to 86400 s"),
        ("snapshots.keep=0", "use 1 to 1000"),
        ("snapshots.standby=yes", "neither true nor false; use true or false"),
        ("worker.group=a b", "use a name of letters"),
        ("topics.dead=streamproc.asks", "is also topics.asks"),
        ("prompts.trade={price}", "has the unknown placeholder {price}; use one of sym"),
        ("prompts.trade={sym", "use write {{ and }} for braces"),
        ("prompts.question=Q:", "does not contain {question}"),
        ("prompts.stop=[1]", "not a list of texts"),
        ("prompts.stop=[", "not a list of texts"),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_source_and_what_would_do(folder, override, what_would_do):
    key, _, value = override.partition("=")
    message = refusal(overrides=[override])
    assert message.startswith(f"{key} = ")
    assert "(flag -X)" in message
    assert what_would_do in message
    assert value.strip() in message


def test_a_wrong_value_names_the_file_it_stands_in(folder):
    written(folder, "[worker]\ngroup = 7\n")
    assert refusal() == (
        "worker.group = 7 (file streamproc.toml): a text is needed, in quotes, not int; "
        "use a name of letters, digits, '.', '_' and '-'"
    )


@pytest.mark.parametrize("toml", ["[engine]\nthreads = true\n", "[engine]\nkeep = true\n", '[prompts]\nstop = [""]\n'])
def test_a_value_of_another_type_is_refused(folder, toml):
    written(folder, toml)
    assert "not a" in refusal()


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ({"overrides": ["engine.context_token=1"]}, "engine.context_tokens?"),
        ({"overrides": ["context_tokens=1"]}, "engine.context_tokens?"),
        ({"overrides": ["worker.grup=1"]}, "worker.group?"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(folder, given, near):
    assert refusal(**given).endswith(f"did you mean {near}")


def test_an_unknown_key_or_table_of_a_file_is_refused(folder):
    written(folder, "[engine]\ncontext_token = 1\n")
    assert refusal() == (
        "unknown setting engine.context_token (file streamproc.toml), did you mean engine.context_tokens?"
    )
    written(folder, "[engines]\nkeep = 1\n")
    assert refusal() == "unknown setting engines (file streamproc.toml), did you mean [engine]?"
    written(folder, "keep = 1\n")
    assert refusal() == "unknown setting keep (file streamproc.toml)"


def test_a_file_says_true_and_false_as_toml_does(folder):
    written(folder, "[snapshots]\nurl = '/x'\nstandby = true\n")
    assert load_config(environ={}).snapshots.standby
    assert "standby = true  # file" in print_config(load_config(environ={}))
    written(folder, "[snapshots]\nstandby = 1\n")
    assert refusal().endswith("neither true nor false; use true or false")


def test_a_standby_without_snapshots_is_refused(folder):
    assert refusal(overrides=["snapshots.standby=true"]) == (
        "snapshots.standby = True (flag -X): there are no snapshots to follow; use it with snapshots.url"
    )


def test_a_pair_without_a_value_is_refused(folder):
    assert "write KEY=VALUE" in refusal(overrides=["engine.keep"])


def test_unknown_variables_are_told_and_do_no_harm(folder):
    environ = {"STREAMPROC_PORT": "tcp://10.0.0.1:80", "STREAMPROC_ENGINE_KEEPS": "1", "STREAMPROC_STATE_DIR": "/x"}
    assert load_config(environ=environ) == Config()
    assert unknown_variables(environ) == [
        "STREAMPROC_ENGINE_KEEPS sets nothing, did you mean STREAMPROC_ENGINE_KEEP?",
        "STREAMPROC_PORT sets nothing",
    ]


def test_unquoted_kafka_names_are_put_together_again(folder):
    written(
        folder, "[kafka]\nsecurity.protocol = 'SSL'\nssl.ca.location = 'ca.pem'\nenable.ssl = true\nlinger.ms = 5\n"
    )
    assert load_config(environ={}).kafka == {
        "security.protocol": "SSL",
        "ssl.ca.location": "ca.pem",
        "enable.ssl": "true",
        "linger.ms": "5",
    }


@pytest.mark.parametrize(
    "toml",
    [
        "[kafka]\ngroup.protocol = 'classic'\ngroup.protocol.type = 'consumer'\n",
        "[kafka]\ngroup.protocol.type = 'consumer'\ngroup.protocol = 'classic'\n",
    ],
)
def test_a_kafka_name_that_starts_another_gets_the_advice_to_quote(folder, toml):
    written(folder, toml)
    assert "quote a key" in refusal()


def test_broken_toml_is_refused_with_its_place(folder):
    written(folder, "[engine\n")
    assert "(at line 1, column 8)" in refusal()


def test_a_printed_config_is_a_settings_file_with_the_same_settings(folder):
    overrides = ['prompts.system=Say "é"\n\\ \x7f', "engine.keep=0.25", "linger.ms=5", 'prompts.stop=["\\n", "#"]']
    config = load_config(overrides=overrides, environ={})
    text = print_config(config)
    assert "keep = 0.25  # flag -X" in text
    assert 'model = "market-tiny"  # default' in text
    again = load_config(written(folder, text, "printed.toml"), environ={})
    assert replace(again, sources={}, kafka={}) == replace(config, sources={}, kafka={})
    assert again.kafka == {"bootstrap.servers": "127.0.0.1:9092", "linger.ms": "5"}


def test_a_printed_config_leaves_the_prompts_of_a_models_folder_in_force(folder):
    config = load_config(overrides=["prompts.stop=[\"\\n\"]"], environ={})
    again = load_config(written(folder, print_config(config), "printed.toml"), environ={})
    assert [key for key in again.sources if key.startswith("prompts.")] == ["prompts.stop"]


def test_secrets_are_printed_as_stars(folder):
    names = ("sasl.password", "ssl.key.password", "sasl.oauthbearer.client.secret", "ssl.key.pem", "sasl.jaas.config")
    config = load_config(overrides=[f"{name}=hunter2" for name in names], environ={})
    assert "hunter2" not in print_config(config)
    assert "hunter2" not in str(settings_doc(config))
    assert tomllib.loads(print_config(config))["kafka"]["sasl.password"] == "***"


def test_the_readme_has_the_table_of_all_settings():
    readme = README.read_text() if README.exists() else ""
    _, _, rest = readme.partition("<!-- settings -->")
    table, marker, _ = rest.partition("<!-- /settings -->")
    assert marker, "README.md needs the markers <!-- settings --> and <!-- /settings --> around the settings table"
    assert table.strip() == settings_table(), "README.md: paste streamproc.settings_text.settings_table() there"
