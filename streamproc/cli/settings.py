"""`streamproc config show`: every setting, its value and where it came from."""

import click

from streamproc.cli.common import Call, shared_options
from streamproc.config import DEFAULT_BOOTSTRAP_SERVERS
from streamproc.kafka.translate import translate
from streamproc.settings_text import print_config, settings_doc, shown


@click.group()
def config() -> None:
    """Show the settings and where each came from."""


@config.command()
@click.option("--kafka", is_flag=True, help="Only the properties that Kafka clients get, as librdkafka names them.")
@shared_options
def show(call: Call, kafka: bool) -> None:
    """Print every setting with its source; the text is a valid settings file.

    \b
    streamproc config show
    STREAMPROC_ENGINE_KEEP=0.25 streamproc config show -X worker.group=desk
    """
    if kafka:
        given = {"bootstrap.servers": DEFAULT_BOOTSTRAP_SERVERS, **translate(call.config.kafka).properties}
        properties = {key: shown(key, value) for key, value in sorted(given.items())}
        call.emit({"kafka": properties}, "\n".join(f"{key}={value}" for key, value in properties.items()))
    else:
        call.emit({"settings": settings_doc(call.config)}, print_config(call.config).rstrip("\n"))
