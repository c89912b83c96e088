"""The data half of a job: where rows come from, either a file that exists or a teacher that writes them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Discriminator, Field, Tag, model_validator

from alpaca_jobs.spec_base import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    PositiveWhole,
    SecretName,
    SpecPart,
    Whole,
    refuse,
    want,
    want_hidden,
)
from alpaca_jobs.spec_filters import FiltersSpec, filters_of_recipe
from alpaca_jobs.spec_server import ServerSpec
from alpaca_jobs.teacher_prices import list_price

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # compared, never bound


def _check_base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.username or parts.password:
        want_hidden("the URL holds a user name or password. Take it out, and name the key's variable in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        want("an http:// or https:// address is wanted, such as http://127.0.0.1:8000/v1")
    return value


class TeacherSpec(SpecPart):
    """An LLM behind an OpenAI-compatible address that writes the rows, or one that the run serves itself."""

    model: str = Field(min_length=1)
    """The model's name as the server knows it, for example gpt-4o-mini; with serve that one, if left out."""
    serve: str | None = Field(default=None, min_length=1)
    """An open model that the machine which writes the rows serves for as long as it writes them, such as
    Qwen/Qwen2.5-7B-Instruct; null: the teacher is a server that is there. What it costs is the machine."""
    server: ServerSpec = ServerSpec()
    """How it is served (with serve only)."""
    base_url: Annotated[str, AfterValidator(_check_base_url)] | None = None
    """Address of an OpenAI-compatible server, ending in /v1; null means the OpenAI API itself."""
    api: Literal["completions", "chat"] = "chat"
    """Which of the two OpenAI interfaces is called."""
    api_key_env: SecretName | None = "OPENAI_API_KEY"
    """NAME of the environment variable holding the key; null for a server that asks for none."""
    answer_format: Literal["text", "json"] = "text"
    """text: the recipe's own format. json: structured output by a schema; needs api: chat."""
    temperature: NotNegative = 1.0
    """Sampling temperature (Alpaca: 1.0)."""
    top_p: Fraction = 1.0
    """Nucleus sampling (Alpaca: 1.0)."""
    max_tokens: PositiveWhole = 3072
    """Most new tokens per request (Alpaca: 3072)."""
    timeout_s: Positive = 120.0
    """Seconds until one try of a request counts as lost (with serve, if left out: 600)."""
    patience_s: NotNegative = 3600.0
    """Seconds for which a teacher that answers nobody is waited for (429, 5xx, no connection; nothing of it is billed),
    before the run ends; a limit or a notice ends it all the same. 0: max_retries counts those, too (with serve, if left
    out: 0)."""
    max_retries: Count = 6
    """Tries after the first one before a request is given up, and counted as a drop."""
    max_billed_retries: Count = 2
    """Of those, tries after one that may have been billed: an unusable answer, a timeout, a lost connection. A request
    is reserved at 1 + this many worst cases. Not counted for a teacher that is free."""
    batch_api: bool = False
    """Ask by OpenAI's Batch API: files of requests at half the prices below, answered within 24 hours; same rows."""
    batch_requests: Annotated[PositiveWhole, Field(le=50_000)] = 1000
    """Requests in one such file at most (OpenAI: 50,000); four files are under way at once."""
    price_per_million_input_usd: NotNegative | None = None
    """What the server asks per million prompt tokens, asked directly, in dollars. Left out: OpenAI's own models at
    their list price (of the day in alpaca_jobs/teacher_prices.json), all others unknown; then no teacher budget can
    be kept."""
    price_per_million_output_usd: NotNegative | None = None
    """What the server asks per million completion tokens; left out, as above."""

    @model_validator(mode="before")
    @classmethod
    def _at_list_price(cls, value: Any) -> Any:
        """Fill in the list price, so that the plan, the ledger and a rendered job all show the price that is used.

        A model of one's own has none: the machine is paid for, not the token, and the key is made for each attempt.
        """
        if isinstance(value, dict) and isinstance(value.get("serve"), str):
            free = {"price_per_million_input_usd": 0.0, "price_per_million_output_usd": 0.0}
            # A GPU answers a hundred requests at once, each of them slowly.
            return {
                "model": value["serve"],
                "api_key_env": None,
                "timeout_s": 600.0,
                "patience_s": 0.0,
                **free,
                **value,
            }
        names = ("price_per_million_input_usd", "price_per_million_output_usd")
        if not isinstance(value, dict) or any(value.get(name) is not None for name in names):
            return value
        model, base_url = value.get("model"), value.get("base_url")
        if not isinstance(model, str) or not isinstance(base_url, str | None):
            return value  # its own validator says what is wrong with it
        price = list_price(model, base_url)
        return value if price is None else {**value, names[0]: price.input_usd, names[1]: price.output_usd}

    @model_validator(mode="after")
    def _json_is_for_chat(self) -> TeacherSpec:
        if self.answer_format == "json" and self.api != "chat":
            refuse("answer_format", "is json, which only the chat interface has. Set api: chat, or answer_format: text")
        return self

    @model_validator(mode="after")
    def _serves_or_asks(self) -> TeacherSpec:
        if self.serve is None:
            if self.server != ServerSpec():
                refuse("server", "says how a model is served, but serve names none. Set serve: MODEL, or remove server")
            return self
        there = f"but serve is {self.serve}, which the run serves itself"
        if self.base_url is not None:
            refuse("base_url", f"is set, {there}, at an address of its own. Remove one of the two")
        if self.model != self.serve:
            refuse("model", f"is {self.model}, {there} under that name. Remove model")
        if self.api_key_env is not None:
            refuse("api_key_env", f"is set, {there} with a key made for each attempt. Remove api_key_env")
        if self.batch_api:
            refuse("batch_api", f"is true, {there}, without a Batch API. Remove batch_api")
        if self.price_per_million_input_usd or self.price_per_million_output_usd:
            refuse(
                "price_per_million_input_usd",
                f"or _output_usd is set, {there}: the machine is paid for, not the token. Remove both",
            )
        return self

    @property
    def needs_key(self) -> bool:
        """Whether requests cannot work without the key; a server on this machine may do without."""
        return self.api_key_env is not None and not self.is_local

    @property
    def is_priced(self) -> bool:
        """Whether both prices are known; 0 is a price."""
        return self.price_per_million_input_usd is not None and self.price_per_million_output_usd is not None

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine."""
        return self.base_url is not None and (urlsplit(self.base_url).hostname or "") in _LOCAL_HOSTS


OFFLINE_WORDS = ("offline", "offline-batch")


def _teacher_in_words(value: Any) -> Any:
    """Answer `teacher: gpt-4o-mini` in words instead of with two failed alternatives."""
    if isinstance(value, str) and value not in OFFLINE_WORDS:
        want(f"a string here can only be offline or offline-batch. For a model write teacher: {{model: {value:.60}}}")
    return value


def _check_concurrency(value: Any) -> Any:
    """Say what is wanted in one sentence instead of two failed alternatives."""
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        want("a whole number of requests, at least 1, or auto is wanted")
    return value


USED_WITH_FROM: Final = ("recipe", "licence")
"""Keys that mean something beside `from`; every other one says how rows are generated."""


class DataSpec(SpecPart):
    """Rows to train on: read from a file (`from`), or written by a teacher from seed tasks."""

    recipe: Literal["alpaca", "self-instruct"] = "alpaca"
    """How rows are generated: alpaca asks for whole tasks, self-instruct for instructions, then for their instances."""
    seed_tasks: str = "builtin"
    """Seed tasks: builtin, or a path or URI of a Self-Instruct JSONL or Alpaca JSON file."""
    num_rows: PositiveWhole = 52_000
    """Rows to keep before generation ends (Alpaca: 52,000)."""
    from_: str | None = Field(
        default=None, min_length=1, validation_alias=AliasChoices("from", "from_"), serialization_alias="from"
    )
    """Path or URI of rows that exist already (Alpaca JSON, or conversations for vicuna); then nothing is generated."""
    teacher: (
        Annotated[
            Annotated[Literal["offline", "offline-batch"], BeforeValidator(_teacher_in_words), Tag("as-word")]
            | Annotated[TeacherSpec, Tag("as-keys")],
            Discriminator(lambda value: "as-keys" if isinstance(value, dict | TeacherSpec) else "as-word"),
        ]
        | None
    ) = None
    """Who writes the rows: offline (a rule-based demo on this machine, no key), offline-batch (the same by its Batch
    API), or a model behind an address."""
    seed: Whole = 42
    """Seed of everything random in generation."""
    filters: FiltersSpec = FiltersSpec()
    """What else is dropped: lengths, words, beginnings."""
    similarity_threshold: Fraction = 0.7
    """A row whose instruction's ROUGE-L F with any seed or kept row is above this is dropped."""
    num_prompt_seeds: PositiveWhole = 3
    """Seed tasks shown in each request (Alpaca: 3; self-instruct, if left out: 6)."""
    num_prompt_rows: Count = 2
    """Instructions by the teacher itself shown beside them (self-instruct only)."""
    max_instances: PositiveWhole = 5
    """Rows kept of one instruction at most (self-instruct only; Alpaca has one of each)."""
    max_tasks_per_request: PositiveWhole = 20
    """Tasks a request's list runs up to, those shown included (Alpaca: 20; self-instruct, if left out: 16)."""
    plan_ahead: PositiveWhole = 64
    """Requests planned and not yet answered, at least (self-instruct only): what is planned later can show what came of
    what was answered before. Raise it with teacher.batch_api, where a round of answers takes an hour."""
    num_actors: PositiveWhole = 2
    """Processes asking the teacher at the same time."""
    concurrency: Annotated[PositiveWhole | Literal["auto"], BeforeValidator(_check_concurrency)] = "auto"
    """Requests each of them keeps in flight; auto: 8 at first, and more, up to 256, for as long as answers come faster
    for it."""
    part_requests: PositiveWhole = 8
    """Requests per committed part of rows."""
    max_requests: PositiveWhole | None = None
    """Stop asking after this many requests even if num_rows is not reached; null means no such limit."""
    neighbours: Count = 0
    """Nearest instructions, with their ROUGE-L F, that each row names as Alpaca's do (Alpaca: 10; recipe alpaca only).
    Compares every row with all before it, which takes longer."""
    review: bool = False
    """true: the run stops when the rows are there, with a data card to look at and nothing left that costs money;
    `alpaca-jobs resume` accepts the rows and goes on to training."""
    licence: str | None = Field(default=None, min_length=1)
    """Licence of your seed tasks, or of the rows in `from`, as the data card and the model card shall name it, such as
    CC-BY-4.0; null: not stated (the builtin seeds are Apache-2.0)."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_recipe_has_it(cls, value: Any) -> Any:
        has_rows = isinstance(value, dict) and value.get("from", value.get("from_")) is not None
        if not isinstance(value, dict) or value.get("recipe") != "self-instruct" or has_rows:
            return value
        filters = filters_of_recipe("self-instruct", value.get("filters"))
        return {"num_prompt_seeds": 6, "max_tasks_per_request": 16, **value, "filters": filters}

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if self.from_ is None:
            if self.teacher is None:
                refuse(
                    "",
                    "names no rows. Set from: FILE to use rows you have, or teacher: offline for a demo "
                    "without a key, or teacher: {model: gpt-4o-mini} to have them written",
                )
            shown = self.num_prompt_seeds + (self.num_prompt_rows if self.recipe == "self-instruct" else 0)
            if shown >= self.max_tasks_per_request:
                refuse(
                    "max_tasks_per_request",
                    f"is {self.max_tasks_per_request}, but num_prompt_seeds already "
                    f"shows {shown} tasks, which leaves the teacher none to write. Set it to "
                    f"{shown + 1} or more (Alpaca: 20)",
                )
            if self.neighbours and self.recipe != "alpaca":
                refuse(
                    "neighbours",
                    f"is {self.neighbours}, which recipe {self.recipe} does not note. Remove it, and have them noted "
                    "afterwards: alpaca-jobs data dedupe --neighbours",
                )
            return self
        for key, field in type(self).model_fields.items():
            # Compared with the default, not with "was it written": a rendered job writes every key, and must load.
            if key not in ("from_", *USED_WITH_FROM) and getattr(self, key) != field.default:
                refuse(
                    key,
                    f"says how rows are generated, but data.from is set, so nothing is. Remove {key}, or remove from",
                )
        return self
