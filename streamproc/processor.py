"""The loop. The only place that knows everybody: sessions, scheduler, model, Kafka.

ingest(source.poll(...))            Kafka hides under the device; what is known already is answered at once
plan n+1                            what the next step computes, decided just before step n ends (device.py)
land n                              the only place where answers get their tokens; the device is at n+1 by now
if commit is due: commit()          one Kafka transaction
"""

import gc
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from streamproc.config import Config
from streamproc.device import Counters, Device, Out
from streamproc.errors import EpochAborted
from streamproc.messages import Ask, Query
from streamproc.ownership import Ownership
from streamproc.ports import Clock, Control, Engine, Keeper, ModelRunner, Sink, Source
from streamproc.schedule.progress import Progress
from streamproc.schedule.scheduler import Scheduler
from streamproc.state import rollback
from streamproc.state.askdesk import AskDesk
from streamproc.state.blocks import BlockPool
from streamproc.state.calls import CallDesk
from streamproc.state.care import Care
from streamproc.state.epoch import Epoch, Message
from streamproc.state.fork import Call, Fork
from streamproc.state.intake import Intake, Rules
from streamproc.state.pace import Pace
from streamproc.state.partition import Recovery, Reply
from streamproc.state.pressure import Pressure
from streamproc.state.publish import Publisher, Settlement, settle
from streamproc.state.queries import QueryBook
from streamproc.state.registrar import OWNER, Registrar
from streamproc.state.returning import Start
from streamproc.state.session import Shape
from streamproc.state.tier import Tier
from streamproc.state.workload import Workload

IDLE_POLL_S = 0.01
ATTEND_S = 0.0005  # between looks at what comes in, while the device works
LAST_SNAPSHOT_S = 2.0  # for snapshots on their way to the store when a worker stops
MAX_IDLE_FORKS = 64  # idle queries queued ahead: enough to fill a step, few enough to be fresh


log = logging.getLogger("streamproc")


def collect_rarely() -> None:
    """Tell Python's garbage collector that a worker's many live tuples are no garbage; once a process.

    Sessions keep every record of their context, and a record is freed by its reference count. With the default
    thresholds the collector walks all of them again and again: a third of the time that a record takes.
    """
    gc.set_threshold(200_000, 50, 100)


class StreamProcessor:
    """One worker. `connect` wires it to a source once the source can call back."""

    def __init__(self, config: Config, engine: Engine, sink: Sink, control: Control, clock: Clock) -> None:
        settings = config.worker
        self.clock = clock
        self.counters = Counters()
        self.queries = QueryBook()
        runner, self.renderer = engine.runner, engine.renderer
        self.pool = BlockPool(runner.num_blocks, runner.block_size)
        self.workload = Workload(self.pool)
        self.tier = Tier.sized(config.engine.host_bytes, runner.block_bytes)
        step_s = config.engine.step_ms / 1e3
        self.scheduler = Scheduler(self.workload, config.engine.step_tokens, step_s, self.tier, recomputes=True)
        progress = Progress(self.workload, self.scheduler.speculation, self.renderer)
        self.device = Device(runner, self.scheduler, progress, self.tier, self.counters)
        self.calls = CallDesk(self.workload, self.renderer, self._why_not_call, clock.now)
        self.rules = Rules(
            config.topics.records,
            settings.session_by == "partition",
            settings.max_record_bytes,
            settings.max_question_tokens,
            settings.max_answer_tokens,
            settings.on_gap,
        )
        self.intake = Intake(self.workload, self.renderer, self.queries, self.rules, engine.why_not)
        self.publisher = Publisher(config.topics, settings.group, engine.fingerprint, settings.slot)
        self.desk = AskDesk(self.intake, self.publisher, clock.unix_ms)
        self.registrar = Registrar(config.topics.control, self.queries, self._why_not)
        self.shape = Shape(
            self.renderer.prefix_ids,
            config.engine.context_tokens,
            int(config.engine.context_tokens * config.engine.keep),
            self.renderer if self.renderer.looks_back else None,
        )
        self._sink, self._control = sink, control
        self._source: Source | None = None
        self.keeper: Keeper | None = None
        self._pace = Pace(
            settings.commit_interval_ms / 1e3, settings.commit_bytes, settings.commit_answers, clock.now()
        )
        self._pressure = Pressure(settings.backlog_tokens, self.pool.num_blocks * self.pool.block_size)
        self.care = Care(config.topics.records, settings.poison_after, self.workload, self.intake.go_live)
        self.ownership = Ownership(self, settings.revoke_ms / 1e3)
        self.partitions = self.ownership.partitions
        self._ends: dict[int, int] = {}  # offsets up to which logs are read
        self._num_epochs, self._started_ms = 0, clock.unix_ms()

    def connect(self, source: Source, keeper: Keeper | None = None) -> None:
        """The source may call back from its first poll on. keeper: None: there are no snapshots."""
        self._source, self.keeper = source, keeper
        self.device.keeper = self.ownership.keeper = keeper
        if keeper:
            keeper.connect(self.pool, self.tier, self.runner.block_bytes, self.partitions)
        self._take_queries()

    @property
    def runner(self) -> ModelRunner:
        return self.device.runner

    @property
    def source(self) -> Source:
        assert self._source is not None, "not connected"
        return self._source

    @property
    def is_at_rest(self) -> bool:
        """All that has come is taken in and computed."""
        return self.workload.is_idle and not self.care.is_holding

    # The loop

    def step(self) -> None:
        """One turn of the loop: what is out lands, what comes next is launched."""
        self._attend(until_ending=self._looks_ahead)
        if not (self._looks_ahead and self.device.is_busy(0.0)):
            self.land()
        self._take_queries()
        self._offer()
        landing = self.device.oldest
        self.device.plan(*self._kept())
        self._reply()
        self._ingest(self.source.poll(self._patience))
        if landing:
            self._attend(landing)
            self._land(landing)
        self._balance()
        for line in self.ownership.returned():
            log.info(line)
        if self._commit_is_due():
            self.commit()

    @property
    def _looks_ahead(self) -> bool:
        """Whether the next step is decided while one is out; with care, one thing comes after the other."""
        return self.scheduler.looks_ahead and not self.care.is_trying

    @property
    def _patience(self) -> float:
        """Seconds for which there is nothing to do but to wait for what comes."""
        if self.device.oldest or self._commit_is_due():
            return 0.0
        return ATTEND_S if self.care.is_trying else IDLE_POLL_S

    def _kept(self) -> tuple[Sequence[tuple[int, bytes]], Collection[int]]:
        """Blocks that the next step is to copy out, and sequences that it is too early to compute."""
        if not self.keeper:
            return (), ()
        held = self._held()
        return () if self.device.saves_are_out else self.keeper.pick(), held

    def _held(self) -> Collection[int]:
        """Generations that it is too early to compute: what is stored of them is being looked for."""
        numbers = self.keeper.sought if self.keeper else ()
        sought = [self.partitions[number] for number in numbers if number in self.partitions]
        return {g.seq_id for partition in sought for s in partition.sessions.values() for g in s.all_generations}

    def _offer(self) -> None:
        """Questions that can be asked now."""
        now = self.clock.now()
        self.calls.take()
        for partition in self.partitions.values():
            self.desk.offer(partition, now)
        if not self.scheduler.is_short and self.workload.num_behind < self.scheduler.step_tokens:
            self.intake.offer_idle(self.partitions, now, MAX_IDLE_FORKS - len(self.workload.flash))

    def _attend(self, landing: Out | None = None, until_ending: bool = False) -> None:
        """While the device works: take in what comes, and answer at once what can be answered without it.

        landing: for as long as this plan is out; until_ending: only until it is time to decide what comes next. A
        rebalance, or an epoch that fails, lands all that is out.
        """
        landing = landing or self.device.oldest
        while landing is not None and self.device.oldest is landing:
            self._reply(until_ending)
            if (until_ending and self.device.is_ending()) or not self.device.is_busy(ATTEND_S):
                return
            if self._ingest(self.source.poll(0)):
                self._balance()

    def _reply(self, until_ending: bool = False) -> None:
        """Commit what somebody waits for, if that keeps no step waiting."""
        is_late = self.device.has_begun or (until_ending and self.device.is_ending(self._pace.commit_s))
        if self._has_replies() and not is_late:
            self.commit()

    def land(self) -> None:
        """Wait for the steps that are out or wait for one, if any; what they have completed is delivered."""
        while oldest := self.device.oldest:
            self._land(oldest)

    def _land(self, out: Out) -> None:
        """Unless something has landed it already."""
        if self.device.oldest is out:
            for fork in self.device.land(self.clock):
                self._deliver(fork)

    def turn(self) -> None:
        """One step without anything new, to its end."""
        self.device.plan((), self._held())
        if not self.device.oldest:
            time.sleep(ATTEND_S)    # what there is to do waits for blocks that threads bring
        self.land()

    @property
    def work_done(self) -> Start:
        return Start(self.clock.now(), self.counters.tokens, self.tier.num_loaded * self.pool.block_size)

    def copy_out(self, saves: Sequence[tuple[int, bytes]]) -> None:
        self.device.copy_out(saves)

    def _deliver(self, fork: Fork) -> None:
        """A complete answer waits for its epoch; that of a call has somebody waiting."""
        if isinstance(fork.question.source, Call):
            self.calls.deliver(fork)
            return
        partition = self.partitions[fork.question.as_of.partition]
        if isinstance(fork.question.source, Ask):
            offset = partition.ask_offsets.pop(fork.seq_id)
            partition.replies.append(Reply(offset, self.publisher.ask_message(fork, fork.question.source)))
            self.counters.asks += 1
        else:
            del partition.forks[fork.seq_id]
            partition.finished.append(fork)
            self._pace.answer()
            self.counters.flash_answers += 1

    # What comes in

    def _ingest(self, messages: list[Message]) -> bool:
        """Take in what may be taken in -> whether anything has come, or has been taken in."""
        now, num_came = self.clock.now(), len(messages)
        messages = self.care.admit(messages, self.partitions, self.source.stamp, not self._pressure.is_high)
        records = [message for message in messages if message.topic == self.rules.records_topic]
        self.intake.take_records(self.partitions, records, now)
        self._pace.take(sum(len(record.value or b"") for record in records))
        self.counters.records += len(records)
        for number in [number for number in self._ends if not self.care.holds(number)]:
            end = self._ends.pop(number)
            if number in self.partitions:
                self.intake.read_to(self.partitions, number, end)
        for message in messages:
            if message.topic != self.rules.records_topic and message.partition in self.partitions:
                self.desk.take(self.partitions[message.partition], message, now)
        return bool(num_came or messages)

    def _why_not_call(self, call: Call, num_tokens: int) -> str | None:
        """The reason why this worker cannot continue a prompt of so many tokens, or None."""
        longest = self.shape.context_tokens + self.rules.max_question_tokens
        if num_tokens > longest:
            return f"prompt: {num_tokens} tokens, this worker takes {longest} (engine.context_tokens and a question's)"
        return self.intake.why_not(call, 0)

    def _why_not(self, query: Query) -> str | None:
        return self.intake.why_not(query, len(self.renderer.tail_ids(query.question)))

    def _take_queries(self) -> None:
        for message in self._control.poll():
            query_id = self.registrar.take(message)
            if query_id is not None:
                for partition in self.partitions.values():
                    rollback.drop_query(self.workload, partition, query_id)

    def _balance(self) -> None:
        """Take in no more records while there is too much to compute, nor fetch more than may wait here; none is
        dropped, and polling goes on.
        """
        backlog = self.workload.num_behind + self.workload.num_waiting
        self._pressure.update(backlog, self.workload.num_cells_needed)
        self.source.hold(self.care.find_full(len(self.partitions)))

    # What goes out

    def _has_replies(self) -> bool:
        has_some = any(partition.replies for partition in self.partitions.values() if partition.is_live)
        return has_some and not self.care.is_trying  # no offset after records that may kill us, before they have not

    def _commit_is_due(self) -> bool:
        if self.care.is_trying:
            return self.care.is_due(self.partitions)
        return self._has_replies() or self._pace.is_due(self.clock.now())

    def commit(self, leaving: Collection[int] = (), timeout_s: float | None = None) -> None:
        """Publish what is finished with the offsets it came from, or roll back to the last commit that landed.

        leaving: partitions that are let go of after it; what cannot be committed of them is dropped.
        """
        self._pace.start_over(self.clock.now())
        self._num_epochs += 1
        epoch_id = f"{self.publisher.worker} {self._started_ms} {self._num_epochs}"
        has_letters = self.registrar.is_behind and OWNER in self.partitions and self.partitions[OWNER].is_live
        also = {OWNER} if has_letters else set()
        epoch, settlements = self.publisher.epoch(self.partitions.values(), epoch_id, also, leaving)
        if has_letters:
            letters, positions = self.registrar.epoch(self.publisher.topics.dead)
            epoch = Epoch((*epoch.messages, *letters), (*epoch.positions, *positions))
        if not epoch:
            return
        started = time.perf_counter()
        try:
            self._sink.commit(epoch, self.source.membership, timeout_s)
            self._pace.took(time.perf_counter() - started)
            self._settle(settlements, epoch)
        except EpochAborted:
            self.counters.aborted_epochs += 1
            staying = [item for item in settlements if item.partition.number not in leaving]
            self._roll_back(staying, epoch, epoch_id)

    def _settle(self, settlements: Iterable[Settlement], epoch: Epoch) -> None:
        """The epoch is committed."""
        self.counters.epochs += 1
        self.registrar.settle(epoch.positions)
        for settlement in settlements:
            for generation in settle(settlement):
                self.workload.drop(generation)
                names = generation.own_names(self.pool.block_size)
                self.pool.forget(names)
                self.tier.forget(names)
        if self.keeper:
            self.keeper.committed(settlement.partition for settlement in settlements)

    def _roll_back(self, settlements: Sequence[Settlement], epoch: Epoch, epoch_id: str) -> None:
        """The committed offsets are the truth: they tell whether the epoch landed; then read again from there."""
        self.land()  # it may write cells of what is taken back
        recoveries = self.source.rewind({item.partition.number: item.partition.committed[0] for item in settlements})
        if any(recovery.stamp.epoch == epoch_id for recovery in recoveries.values()):
            self._settle(settlements, epoch)
        self.care.forget(recoveries)
        for item in settlements:
            rollback.truncate(self.workload, item.partition, recoveries[item.partition.number])

    # Partitions that come and go

    def assigned(self, recoveries: dict[int, Recovery]) -> None:
        self._ends = {number: end for number, end in self._ends.items() if number not in recoveries}
        self.ownership.assigned(recoveries)

    def revoked(self, numbers: Sequence[int]) -> None:
        self.ownership.revoked(numbers)

    def lost(self, numbers: Sequence[int]) -> None:
        self.ownership.lost(numbers)

    def read_to(self, ends: Mapping[int, int]) -> None:
        self._ends.update(ends)

    def close(self, deadline_s: float = 5.0) -> None:
        """Answer what has been asked if it can be done in time, commit, leave the group."""
        self.land()
        deadline = self.clock.now() + deadline_s
        while not self.workload.is_idle and self.clock.now() < deadline:
            self.turn()
        self.commit()
        self.calls.close()
        self.source.close()
        self._sink.close()
        if self.keeper:
            self.keeper.close(LAST_SNAPSHOT_S)

    def check(self) -> None:
        """Every block and every fork is accounted for."""
        self.workload.check()
        expected = {
            seq_id for partition in self.partitions.values() for seq_id in (*partition.forks, *partition.ask_offsets)
        } | self.calls.seq_ids
        assert expected == {fork.seq_id for fork in self.workload.forks()}, "forks differ from the partitions'"
