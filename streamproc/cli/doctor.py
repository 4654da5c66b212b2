"""`streamproc doctor`: is everything here that a worker needs, and what would mend it; exits 3 where a check fails."""

import click
from click.exceptions import Exit

from streamproc.cli.checks import FAIL, OK, WARN, Check, check_machine, check_settings
from streamproc.cli.common import Call, shared_options
from streamproc.config import Config, state_dir
from streamproc.errors import StreamprocError
from streamproc.settings import BOOTSTRAP, BOOTSTRAP_VARIABLE
from streamproc.settings_text import print_config, settings_doc

NO = 3
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


@click.command()
@click.option("--report", is_flag=True, help="A block to paste into an issue: the checks and all settings, no secrets.")
@shared_options
def doctor(call: Call, report: bool) -> None:
    """Check settings, versions, broker, topics, model, code, memory and disk; changes nothing.

    \b
    streamproc doctor
    streamproc doctor -b kafka.example.com:9092 --report

    Exits 3 where a check fails.
    """
    from streamproc.cli.broker_checks import check_kafka

    config, first = read_settings(call)
    checks = [first, *check_machine(config, state_dir(), call.environ), *check_kafka(config)]
    failed = sum(check.state == FAIL for check in checks)
    doc = {"ok": not failed, "failed": failed, "checks": [check._asdict() for check in checks]}
    settings = settings_doc(config)
    call.emit(
        doc | ({"settings": settings} if report else {}), to_report(checks, config) if report else to_text(checks)
    )
    if failed:
        raise Exit(NO)


def read_settings(call: Call) -> tuple[Config, Check]:
    """The settings; where they are wrong the defaults and the broker's address, so that the other checks go on."""
    try:
        return call.config, check_settings(call.config)
    except StreamprocError as problem:
        servers = call.flags.bootstrap_servers or call.environ.get(BOOTSTRAP_VARIABLE)
        config = Config(kafka={BOOTSTRAP: servers} if servers else {})
        return config, Check("settings", FAIL, str(problem), "until then the other checks use the defaults")


def to_text(checks: list[Check]) -> str:
    """One line a check, coloured where a terminal shows it."""
    return "\n".join(f"{click.style(f'{check.state:<4}', COLOURS[check.state])}  {to_line(check)}" for check in checks)


def to_report(checks: list[Check], config: Config) -> str:
    lines = "\n".join(f"{check.state:<4}  {to_line(check)}" for check in checks)
    return f"```\n{lines}\n```\n\n```toml\n{print_config(config)}```"


def to_line(check: Check) -> str:
    return f"{check.name:<15}  {check.detail}" + (f"  -> {check.mend}" if check.mend else "")
