"""The loop. The only place that knows everybody: sessions, scheduler, model, Kafka.

plan   = scheduler.plan()                 what the next step computes: a frozen value
flight = runner.launch(plan)              returns at once; the device works
ingest(source.poll(...))                  Kafka hides under the device; what is known already is answered at once
apply(plan, flight.wait())                the only place where progress is recorded
if commit is due: commit()                one Kafka transaction
"""

import gc
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from streamproc.config import Config
from streamproc.errors import EpochAborted, OutOfMemory
from streamproc.messages import Ask, Query
from streamproc.ports import Clock, Control, Engine, Keeper, Sink, Source
from streamproc.schedule.plan import Flight, Plan
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
from streamproc.state.lifecycle import ACTS, Act, Event, Phase
from streamproc.state.pace import Pace
from streamproc.state.partition import Partition, Recovery, Reply
from streamproc.state.pressure import Pressure
from streamproc.state.publish import Publisher, Settlement, settle
from streamproc.state.queries import QueryBook
from streamproc.state.recent import remember
from streamproc.state.registrar import OWNER, Registrar
from streamproc.state.returning import Returning, Start
from streamproc.state.session import Shape
from streamproc.state.tier import Tier
from streamproc.state.workload import Workload

IDLE_POLL_S = 0.01
ATTEND_S = 0.0005  # between looks at what comes in, while the device works
LEAST_COMMIT_S = 0.5  # for the last epoch of partitions that go, even when their time is up
MAX_IDLE_FORKS = 64  # idle queries queued ahead: enough to fill a step, few enough to be fresh


log = logging.getLogger("streamproc")


@dataclass(slots=True)
class Counters:
    """What this worker has done since it started."""

    records: int = 0
    bad_records: int = 0
    flash_answers: int = 0
    asks: int = 0
    epochs: int = 0
    aborted_epochs: int = 0
    steps: int = 0
    tokens: int = 0


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
        self.partitions: dict[int, Partition] = {}
        self.runner, self.renderer = engine.runner, engine.renderer
        self.pool = BlockPool(self.runner.num_blocks, self.runner.block_size)
        self.workload = Workload(self.pool)
        self.tier = Tier(config.engine.host_bytes // self.runner.block_bytes)
        self.keeper: Keeper | None = None
        self.scheduler = Scheduler(self.workload, config.engine.step_tokens, config.engine.step_ms / 1e3, self.tier)
        self.progress = Progress(self.workload, self.scheduler.speculation, self.renderer)
        self.calls = CallDesk(self.workload, self.renderer, self._why_not_call, clock.now)
        self.rules = Rules(
            config.topics.records,
            settings.session_by == "partition",
            settings.max_record_bytes,
            settings.max_question_tokens,
            settings.max_answer_tokens,
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
        self._pace = Pace(
            settings.commit_interval_ms / 1e3, settings.commit_bytes, settings.commit_answers, clock.now()
        )
        self._pressure = Pressure(settings.backlog_tokens, self.pool.num_blocks * self.pool.block_size)
        self._care = Care(config.topics.records, settings.poison_after, self.workload, self.intake.go_live)
        self._revoke_s = settings.revoke_ms / 1e3
        self._returning = Returning()
        self._flight: tuple[Plan, Flight] | None = None
        self._num_epochs, self._started_ms = 0, clock.unix_ms()
        self._was_out_of_memory = False

    def connect(self, source: Source, keeper: Keeper | None = None) -> None:
        """The source may call back from its first poll on. keeper: None: there are no snapshots."""
        self._source, self.keeper = source, keeper
        if keeper:
            keeper.connect(self.pool, self.tier, self.runner.block_bytes)
        self._take_queries()

    @property
    def source(self) -> Source:
        assert self._source is not None, "not connected"
        return self._source

    # The loop

    def step(self) -> None:
        """One turn of the loop."""
        self._take_queries()
        self._offer()
        plan = self.scheduler.plan(self.keeper.pick() if self.keeper else ())
        self._flight = plan, self.runner.launch(plan)
        self._ingest(self.source.poll(0 if plan.chunks else ATTEND_S if self._care.is_trying else IDLE_POLL_S))
        self._attend()
        self._land()
        self._balance()
        if self._returning:
            for line in self._returning.back(self.partitions, self.workload, self._so_far()):
                log.info(line)
        if self._commit_is_due():
            self.commit()

    def _offer(self) -> None:
        """Questions that can be asked now."""
        now = self.clock.now()
        self.calls.take()
        for partition in self.partitions.values():
            self.desk.offer(partition, now)
        if not self.scheduler.is_short and self.workload.num_behind < self.scheduler.step_tokens:
            self.intake.offer_idle(self.partitions, now, MAX_IDLE_FORKS - len(self.workload.flash))

    def _attend(self) -> None:
        """While the device works: take in what comes, and answer at once what can be answered without it.

        A rebalance, or an epoch that fails, lands the flight.
        """
        while self._flight is not None and not self._flight[1].is_done(ATTEND_S):
            self._ingest(self.source.poll(0))
            self._balance()
            if self._has_replies():
                self.commit()

    def _land(self) -> None:
        """Wait for the flight that is out, if any, and record its progress. Raises OutOfMemory at its second time."""
        if self._flight is None:
            return
        (plan, flight), self._flight = self._flight, None
        try:
            sampled = flight.wait()
        except OutOfMemory as problem:
            if self._was_out_of_memory:
                raise
            self._was_out_of_memory = True
            log.warning("%s; trying once more with less in a step", problem)
            self.scheduler.retreat(plan)
        else:
            self._was_out_of_memory &= not plan.chunks
            self.scheduler.landed(flight.seconds)
            self._take_saved(flight)
            self._apply(plan, sampled)

    def _so_far(self) -> Start:
        return Start(self.clock.now(), self.counters.tokens, self.tier.num_loaded * self.pool.block_size)

    def _take_saved(self, flight: Flight) -> None:
        """Blocks that a step has copied out of the pool."""
        if saved := flight.saved:
            self.tier.put(saved)
            if self.keeper:
                self.keeper.take(saved)

    def _copy_out(self, saves: Sequence[tuple[int, bytes]]) -> None:
        """At once, with no flight out."""
        flight = self.runner.launch(Plan((), (), tuple(saves)))
        flight.wait()
        self._take_saved(flight)

    def _apply(self, plan: Plan, sampled: dict[int, tuple[int, ...]]) -> None:
        for fork in self.progress.apply(plan, sampled, self.clock.now()):
            self._deliver(fork)
        self.counters.steps += bool(plan.chunks)
        self.counters.tokens += plan.num_tokens

    def _deliver(self, fork: Fork) -> None:
        """A complete answer waits for its epoch; that of a call has somebody waiting."""
        remember(fork)
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

    def _ingest(self, messages: list[Message]) -> None:
        now = self.clock.now()
        messages = self._care.admit(messages, self.partitions, self.source.stamp)
        records = [message for message in messages if message.topic == self.rules.records_topic]
        self.intake.take_records(self.partitions, records, now)
        self._pace.take(sum(len(record.value or b"") for record in records))
        self.counters.records += len(records)
        for message in messages:
            if message.topic != self.rules.records_topic and message.partition in self.partitions:
                self.desk.take(self.partitions[message.partition], message, now)

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
        """Stop fetching records while there is too much to compute; none is dropped, and polling goes on."""
        backlog = self.workload.num_behind + self.workload.num_waiting
        if self._pressure.changes(backlog, self.workload.num_cells_needed, self._care.is_full):
            (self.source.pause if self._pressure.is_high else self.source.resume)()

    # What goes out

    def _has_replies(self) -> bool:
        has_some = any(partition.replies for partition in self.partitions.values() if partition.is_live)
        return has_some and not self._care.is_trying  # no offset after records that may kill us, before they have not

    def _commit_is_due(self) -> bool:
        if self._care.is_trying:
            return self._care.is_due(self.partitions)
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
        try:
            self._sink.commit(epoch, self.source.membership, timeout_s)
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
        if self.keeper:
            self.keeper.committed(settlement.partition for settlement in settlements)

    def _roll_back(self, settlements: Sequence[Settlement], epoch: Epoch, epoch_id: str) -> None:
        """The committed offsets are the truth: they tell whether the epoch landed; then read again from there."""
        self._land()    # it may write cells of what is taken back
        recoveries = self.source.rewind({item.partition.number: item.partition.committed[0] for item in settlements})
        if any(recovery.stamp.epoch == epoch_id for recovery in recoveries.values()):
            self._settle(settlements, epoch)
        self._care.forget(recoveries)
        for item in settlements:
            rollback.truncate(self.workload, item.partition, recoveries[item.partition.number])

    # Partitions that come and go

    def assigned(self, recoveries: dict[int, Recovery]) -> None:
        """These partitions are ours now."""
        self._land()
        self._let_go([number for number in recoveries if self._act(number, Event.ASSIGNED) is Act.LET_GO])
        if self.keeper:
            self.keeper.assigned({n: (recovery.topic_id, recovery.live_from) for n, recovery in recoveries.items()})
        for number, recovery in recoveries.items():
            partition = self.partitions[number] = Partition.recover(number, self.shape, recovery)
            self._care.assigned(partition, recovery)
            if recovery.rebuild_from < recovery.live_from:
                self._returning.begin(number, self._so_far())
            if number == OWNER:
                self.registrar.committed = recovery.control_from
            if recovery.rebuild_from >= recovery.live_from:
                self.intake.go_live(partition)

    def revoked(self, numbers: Sequence[int]) -> None:
        """Answer what was asked of these partitions while there is time, commit it, let go of them."""
        deadline = self.clock.now() + self._revoke_s
        self._land()
        leaving = [self.partitions[number] for number in numbers if self._act(number, Event.REVOKED) is Act.FINISH]
        self._finish(leaving, deadline)
        self.commit([partition.number for partition in leaving], max(deadline - self.clock.now(), LEAST_COMMIT_S))
        if self.keeper:
            self.keeper.hand_over(leaving, self._copy_out, max(deadline - self.clock.now(), 0.0))
        self._let_go(numbers)

    def _finish(self, leaving: Sequence[Partition], deadline: float) -> None:
        for partition in leaving:
            self.desk.offer(partition, self.clock.now())
            partition.enter(Phase.LEAVING)
            rollback.drop_forks(self.workload, partition, lambda fork: not fork.question.is_due)
        while any(partition.is_asked for partition in leaving) and self.clock.now() < deadline:
            plan = self.scheduler.plan()
            self._flight = plan, self.runner.launch(plan)
            self._land()

    def _act(self, number: int, event: Event) -> Act:
        partition = self.partitions.get(number)
        return ACTS[partition.phase if partition else None, event]

    def lost(self, numbers: Sequence[int]) -> None:
        """Somebody else owns these partitions already: nothing of them may be committed."""
        self._land()
        self._let_go(numbers)

    def _let_go(self, numbers: Sequence[int]) -> None:
        if self.keeper:
            self.keeper.let_go(numbers)
        for number in [number for number in numbers if number in self.partitions]:
            self._care.let_go(number)
            self._returning.let_go(number)
            rollback.let_go(self.workload, self.partitions.pop(number))

    def close(self, deadline_s: float = 5.0) -> None:
        """Answer what has been asked if it can be done in time, commit, leave the group."""
        self._land()
        deadline = self.clock.now() + deadline_s
        while not self.workload.is_idle and self.clock.now() < deadline:
            plan = self.scheduler.plan()
            self._flight = plan, self.runner.launch(plan)
            self._land()
        self.commit()
        self.calls.close()
        self.source.close()
        self._sink.close()
        if self.keeper:
            self.keeper.close()

    def check(self) -> None:
        """Every block and every fork is accounted for."""
        self.workload.check()
        expected = {
            seq_id for partition in self.partitions.values() for seq_id in (*partition.forks, *partition.ask_offsets)
        } | self.calls.seq_ids
        assert expected == {fork.seq_id for fork in self.workload.forks()}, "forks differ from the partitions'"
