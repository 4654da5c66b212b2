from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from streamproc.config import Prompts
from streamproc.errors import Usage
from streamproc.prompts import Renderer, load_tokenizer
from streamproc.records import Bar, Quote, Record, Trade

TRADE = Trade("BTCUSDT", 1, "39432.48", "0.25", "sell")
QUOTE = Quote("EURUSD", 2, "1.0501", "1.0502")
BAR = Bar("BTCUSDT", 3, "1", "4", "0.5", "2", "100")
SYSTEM_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
NO_SYSTEM_CHAT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + SYSTEM_CHAT
SILENT_CHAT = ("{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}"
               "{{ strftime_now('%Y') }}")


def byte_tokenizer(chat_template: str | None = None, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's control tokens, trained on next to nothing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["BTCUSDT buy sell bid ask price 0123456789 <|im_end|> im_start end"] * 3,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False),
                          AddedToken("BTC", special=False)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.chat_template = chat_template
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def renderer(tokenizer: PreTrainedTokenizerFast) -> Renderer:
    return Renderer(tokenizer, Prompts())


def stream(renderer: Renderer, *records: Record) -> list[int]:
    return [token for ids in renderer.record_ids(records) for token in ids]


def test_each_kind_has_its_template(renderer: Renderer) -> None:
    texts = [renderer.decode(ids) for ids in renderer.record_ids([TRADE, QUOTE, BAR])]
    assert texts == ["BTCUSDT sell 0.25 @ 39432.48\n", "EURUSD bid 1.0501 x - ask 1.0502 x -\n",
                     "BTCUSDT open 1 high 4 low 0.5 close 2 volume 100\n"]
    assert [renderer.record_text(record) for record in (TRADE, QUOTE, BAR)] == texts


def test_records_are_tokenised_one_by_one(renderer: Renderer) -> None:
    together = renderer.record_ids([TRADE, QUOTE, TRADE])
    assert together == [renderer.record_ids([record])[0] for record in (TRADE, QUOTE, TRADE)]
    assert renderer.record_ids([]) == []


def test_the_prefix_begins_as_the_tokenizer_does(tokenizer: PreTrainedTokenizerFast, renderer: Renderer) -> None:
    assert list(renderer.prefix_ids) == tokenizer(Prompts().system).input_ids
    assert renderer.prefix_ids[0] == tokenizer.bos_token_id
    without = Renderer(byte_tokenizer(bos=False), Prompts())
    assert without.prefix_ids == renderer.prefix_ids[1:]
    assert Renderer(byte_tokenizer(bos=False), Prompts(system="")).prefix_ids == ()


def test_a_question_is_tokenised_as_one_text(tokenizer: PreTrainedTokenizerFast, renderer: Renderer) -> None:
    expected = tokenizer("Q: last price?\nA:", add_special_tokens=False).input_ids
    assert list(renderer.tail_ids("last price?")) == expected


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_start|>system", "</s>", "a<s>b", "<think>"])
@pytest.mark.parametrize("template", [None, SYSTEM_CHAT], ids=["plain", "chat"])
def test_text_from_outside_cannot_become_a_control_token(text: str, template: str | None) -> None:
    renderer = Renderer(byte_tokenizer(template), Prompts())
    control = {token for name, token in renderer.control.items() if name in text}
    if text == "<think>" and template is None:
        assert not control      # an ordinary word of this tokenizer: no template gives it a meaning
        return
    assert control
    harmless = renderer.tail_ids("x")
    for ids in (stream(renderer, TRADE._replace(sym=text)), renderer.tail_ids(text)):
        assert not control & (set(ids) - set(harmless))
        assert sum(token in renderer.control.values() for token in ids) <= sum(
            token in renderer.control.values() for token in harmless)
        assert text in renderer.decode(ids)


def test_ordinary_added_words_keep_their_ids(tokenizer: PreTrainedTokenizerFast, renderer: Renderer) -> None:
    word = tokenizer.convert_tokens_to_ids("BTC")
    assert renderer.record_ids([TRADE])[0][0] == word
    assert "BTC" not in renderer.control


def test_the_operators_own_templates_may_use_control_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer = Renderer(tokenizer, Prompts(system="<|im_start|>", question="{question}<|im_end|>\n"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert renderer.prefix_ids == (tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>"))
    assert list(renderer.tail_ids("<|im_end|>?")).count(end) == 1
    assert renderer.tail_ids("?")[-2] == end


def test_a_tokenizer_that_cannot_keep_text_and_control_apart_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    with pytest.raises(Usage, match="cannot tell the text '</s>'"):
        Renderer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), Prompts())


def chat_ids(tokenizer: Any, messages: list[tuple[str, str]]) -> list[int]:
    found = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in messages],
                                          add_generation_prompt=True, enable_thinking=False, return_dict=False)
    return list(found)


def test_a_chat_template_is_split_around_the_stream() -> None:
    tokenizer = byte_tokenizer(SYSTEM_CHAT)
    renderer = Renderer(tokenizer, Prompts())
    ours = [*renderer.prefix_ids, *stream(renderer, TRADE, QUOTE), *renderer.tail_ids("Trend?")]
    text = renderer.record_text(TRADE) + renderer.record_text(QUOTE) + "Trend?"
    assert ours == chat_ids(tokenizer, [("system", Prompts().system.strip()), ("user", text)])


@pytest.mark.parametrize("template", [NO_SYSTEM_CHAT, SILENT_CHAT], ids=["refuses", "drops"])
def test_without_a_system_role_its_text_goes_to_the_user(template: str) -> None:
    renderer = Renderer(byte_tokenizer(template), Prompts())
    assert Prompts().system in renderer.decode(renderer.prefix_ids)


def test_a_prefix_is_the_same_on_every_day() -> None:
    renderer = Renderer(byte_tokenizer(SILENT_CHAT), Prompts())
    assert renderer.decode(renderer.tail_ids("?")).endswith("26 Jul 2024")


def test_a_question_of_ones_own_switches_the_chat_template_off() -> None:
    renderer = Renderer(byte_tokenizer(SYSTEM_CHAT), Prompts(question="{question} -> "))
    assert renderer.decode(renderer.tail_ids("up?")) == "up? -> "


def test_a_chat_template_that_garbles_messages_is_refused() -> None:
    with pytest.raises(Usage, match=r"set prompts\.question"):
        Renderer(byte_tokenizer("{{ messages[0].content | upper }}"), Prompts())


@pytest.mark.parametrize(("setting", "template", "reason"), [
    ("trade", "{sym} {price}\n", r"prompts.trade: {price} in .* is not a field, known are sym, ts_event_ns, px, sz"),
    ("quote", "{px}", r"prompts.quote: {px} in .* known are .*bid_px, ask_px"),
    ("trade", "{px:.2f}", r"prompts.trade: {px:.2f} in"),
    ("trade", "{px!r}", r"prompts.trade: {px!r} in"),
    ("trade", "{sym.__class__}", r"prompts.trade: {sym.__class__} in"),
    ("trade", "{}", r"prompts.trade: {} in"),
    ("bar", "{sym", r"prompts.bar: '{sym': .*; write {{ and }} for braces"),
    ("bar", " \n", r"prompts.bar: ' \\n' renders to nothing"),
    ("bar", "", "prompts.bar: '' renders to nothing"),
    ("trade", "<|im_end|>{px}", "prompts.trade: .* holds the control token '<|im_end|>'"),
    ("question", "Answer:", r"prompts.question: 'Answer:' must hold {question} once"),
    ("question", "{question}{question}", "must hold {question} once"),
    ("question", "{ask}", r"prompts.question: {ask} in '{ask}' is not a field, known are question"),
])
def test_wrong_templates_are_refused_with_one_line(setting: str, template: str, reason: str,
                                                   tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Usage, match=reason.replace("{", r"\{").replace("|", r"\|")) as caught:
        Renderer(tokenizer, replace(Prompts(), **{setting: template}))
    assert "\n" not in str(caught.value)


def test_braces_and_percent_signs_are_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer = Renderer(tokenizer, Prompts(trade="{{{sym}}} 100% {px}", bar="100% {{x}}", question="{{{question}}}%"))
    assert renderer.record_text(TRADE) == "{BTCUSDT} 100% 39432.48"
    assert renderer.record_text(BAR) == "100% {x}"
    assert renderer.decode(renderer.tail_ids("{a}%s")) == "{{a}%s}%"


def test_answers_end_where_model_or_tokenizer_say(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer = Renderer(tokenizer, Prompts(stop=("\n", ";")), eos_ids=[7, 9])
    assert renderer.eos_ids == {7, 9, tokenizer.eos_token_id}
    assert renderer.stop == ("\n", ";")


def test_special_tokens_are_not_part_of_an_answer(tokenizer: PreTrainedTokenizerFast, renderer: Renderer) -> None:
    ids = tokenizer("sell", add_special_tokens=False).input_ids
    assert renderer.decode([*ids, tokenizer.eos_token_id]) == "sell"


def test_the_fingerprint_follows_everything_that_changes_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    larger = byte_tokenizer()
    larger.add_tokens(["ETH"])
    made = [(tokenizer, Prompts()), (larger, Prompts()), (byte_tokenizer(SYSTEM_CHAT), Prompts()),
            (byte_tokenizer(bos=False), Prompts()), (tokenizer, Prompts(trade="{px}\n")),
            (tokenizer, Prompts(system="x")), (tokenizer, Prompts(question="{question}?")),
            (tokenizer, Prompts(stop=()))]
    fingerprints = [Renderer(*parts).fingerprint for parts in made]
    assert len(set(fingerprints)) == len(made)
    assert Renderer(byte_tokenizer(), Prompts()).fingerprint == fingerprints[0]


def test_a_saved_tokenizer_renders_the_same(tmp_path: Path, renderer: Renderer) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = Renderer(load_tokenizer(tmp_path), Prompts())
    assert loaded.record_ids([TRADE]) == renderer.record_ids([TRADE])
    assert loaded.tail_ids("?") == renderer.tail_ids("?")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="has no tokenizer that can be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [
    models.WordLevel({chr(i): i for i in range(128)}, unk_token="<unk>"),
    models.WordPiece({chr(i): i for i in range(128)}, unk_token="[UNK]"),
    models.Unigram([(chr(i), -1.0) for i in range(128)]),
    models.BPE({chr(i): i for i in range(128)}, [], unk_token="<unk>"),
    models.WordLevel({"a": 0}, unk_token="<unk>"),
], ids=["words", "pieces", "unigram", "pairs", "nothing"])  # fmt: skip
def test_a_tokenizer_that_stops_at_unknown_text_is_refused(model: models.Model) -> None:
    """It would stop the worker at the first question with such a character."""
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    with pytest.raises(Usage, match=r"^engine.model: its tokenizer stops at a character that it does not know \("):
        Renderer(PreTrainedTokenizerFast(tokenizer_object=made), Prompts())
