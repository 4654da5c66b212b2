"""What the embedded Kafka is told, and what its log tells: settings of one KRaft process, and its last words."""

import base64
import re
import uuid
from pathlib import Path

from streamproc.errors import Usage

SERVER_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "500",
}

LOG4J2 = """<Configuration status="WARN">
  <Appenders>
    <RollingFile name="file" fileName="${sys:streamproc.log}" filePattern="${sys:streamproc.log}.%i">
      <PatternLayout pattern="[%d] %p %m (%c)%n"/>
      <SizeBasedTriggeringPolicy size="16 MB"/>
      <DefaultRolloverStrategy max="2"/>
    </RollingFile>
  </Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="file"/></Root></Loggers>
</Configuration>
"""

# What names a cause in the output of a JVM or of Kafka, most telling first.
DECISIVE = (
    r"Terminating due to |Unrecognized |Invalid |Could not reserve ",
    r"(Caused by: )?[\w.$]+(Exception|Error): ",
    r"(\[[^]]*\] )?(ERROR|FATAL) ",
    r"",
)
MAX_LINE_CHARS = 300


def server_properties(address: str, controller: str, data: Path) -> str:
    """Text of server.properties for these HOST:PORT addresses and this data folder. Raises Usage for its name."""
    if "," in str(data):
        raise Usage(f"cannot use {data}: Kafka takes no comma in a data folder's name; try another --data-dir")
    listeners = f"PLAINTEXT://{address},CONTROLLER://{controller}"
    properties = {
        **SERVER_PROPERTIES,
        "listeners": listeners,
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": str(data),
    }
    return "".join(f"{key}={escaped(value)}\n" for key, value in properties.items())


def new_cluster_id() -> str:
    """A random id in Kafka's own form, which must not begin like a flag."""
    while (name := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return name


def escaped(value: str) -> str:
    """A value as Java's .properties files hold it: ASCII only."""
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)


def decisive_line(log: str) -> str:
    """The line of a Java log that says why: the JVM's last word, else the last exception, error or line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in DECISIVE:
        if found := [line for line in lines if re.match(pattern, line)]:
            return found[-1].removeprefix("Caused by: ")[:MAX_LINE_CHARS]
    return "it said nothing"
