"""Generate the demo data: customer messages, each with the support ticket it should become.

Running this script rewrites `train.jsonl` and `eval.jsonl` beside it, always with the same bytes.
Every row is a short chat: a system message, a customer's message, and the ticket as one line of
JSON. The messages are invented, from the word lists below; no real customer wrote any of them.
Like the rest of the project, they are licensed under Apache-2.0.

A message is a handful of small pieces. Two kinds of words meet in each piece:

* *key words* decide a label: "my money back" makes a refund, "kettle" makes kitchen. Both splits
  share them, since a model can learn the labels from nothing else.
* *frames* are everything around the key words: openings, sentences, closings. Each split has its
  own, and its own order numbers, so evaluation shows known words in unseen sentences only.
"""

import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

Choice = TypeVar("Choice")

SEED = 2024
TRAIN_ROWS = 320
EVAL_ROWS = 120

SYSTEM = (
    "Turn the customer's message into a ticket: one line of JSON with the keys intent, product, "
    "urgency and order_number, which is a string or null."
)

# The key words: each label, and the words that decide it.

INTENTS = {
    "refund": ("a refund", "my money back", "a reimbursement"),
    "delivery_delay": ("has not arrived", "has not been delivered", "is late"),
    "defect": ("is broken", "is faulty", "is damaged"),
    "cancellation": ("cancel", "call off", "withdraw"),
    "question": ("the warranty", "the dimensions", "the colours", "the weight"),
}

PRODUCTS = {
    "audio": ("headset", "speaker", "set of earbuds", "pair of headphones"),
    "computer": ("laptop", "notebook", "desktop PC"),
    "mobile": ("phone", "smartphone", "cellphone"),
    "kitchen": ("kettle", "toaster", "blender", "coffee maker"),
    "furniture": ("desk", "armchair", "bookshelf", "wardrobe"),
    "footwear": ("pair of boots", "pair of sneakers", "pair of sandals"),
}

URGENCIES = {
    "low": ("at your leisure", "without any hurry", "with no rush"),
    "normal": ("this week", "within a few days", "in the usual time"),
    "high": ("right away", "immediately", "as soon as possible"),
}

# Shapes of order numbers, where "d" stands for a digit. None names no order; drawn evenly, these
# ten leave three messages in ten without a number.
ORDER_SHAPES = (
    *("dddddd", "ddddddd", "dddddd", "ddddddd"),
    *("AB-ddddd", "KX-ddddd", "TM-ddddd"),
    *(None, None, None),
)


class Wording(NamedTuple):
    """The frames of one split: what its customers say around the key words."""

    openings: Sequence[str]
    requests: Mapping[str, Sequence[str]]
    mentions: Sequence[str]
    with_number: Sequence[str]
    without_number: Sequence[str]
    deadlines: Sequence[str]
    closings: Sequence[str]


class Ticket(NamedTuple):
    """The ticket of a message; its fields are in the order of the answer's keys."""

    intent: str
    product: str
    urgency: str
    order_number: str | None


TRAIN_STATEMENTS = (
    "{product} {key}.",
    "I am sorry to say that {product} {key}.",
    "It seems that {product} {key}.",
    "Three weeks have passed and {product} {key}.",
    "My wife tells me that {product} {key}.",
    "Just so you know, {product} {key}.",
    "I am writing because {product} {key}.",
    "To my surprise {product} {key}.",
    "What can be done? I see that {product} {key}.",
)

TRAIN = Wording(
    openings=(
        "Hello.",
        "Hi!",
        "Hi there!",
        "Good morning.",
        "Hello support team.",
        "Hi everyone!",
    ),
    requests={
        "refund": (
            "I would like {key} for {product}.",
            "Please give me {key} for {product}.",
            "Can I have {key} for {product}?",
            "I do not like {product} and want {key}.",
            "I sent back {product}, so I expect {key}.",
            "How do I get {key} for {product}?",
            "Since {product} is not for me, I ask for {key}.",
        ),
        "delivery_delay": TRAIN_STATEMENTS,
        "defect": TRAIN_STATEMENTS,
        "cancellation": (
            "Please {key} the order for {product}.",
            "I want to {key} my purchase of {product}.",
            "Can you {key} the order for {product}?",
            "I changed my mind about {product}, please {key} the order.",
            "We have to {key} the order we placed for {product}.",
            "How do I {key} my order of {product}?",
            "As {product} is not needed any more, I {key} the purchase.",
        ),
        "question": (
            "What can you tell me about {key} of {product}?",
            "I would like to know {key} of {product}.",
            "Please tell me {key} of {product}.",
            "I looked at {product} and wonder about {key}.",
            "Can you send me {key} of {product}?",
            "Where on your site is {key} of {product}?",
            "I have not bought {product} yet: what about {key}?",
            "One thing about {product} is unclear to me, {key}.",
            "How do I learn {key} of {product}?",
        ),
    },
    mentions=("the {word}", "my {word}", "the new {word}", "the black {word}"),
    with_number=(
        "My order number is {number}.",
        "The order number is {number}.",
        "It is about order {number}.",
        "This concerns my order {number}.",
        "You will find it under {number}.",
        "Order number: {number}.",
    ),
    without_number=(
        "I do not have the order number.",
        "I am afraid I lost the receipt.",
        "I cannot find my order number.",
        "I ordered at the counter.",
    ),
    deadlines=(
        "Please answer {key}.",
        "Please get back to me {key}.",
        "I would like a reply {key}.",
        "Can you sort it out {key}?",
        "You can write to me {key}.",
        "I hope to hear from you {key}.",
        "Someone may call me back {key}.",
        "It should be solved {key}.",
        "Do take care of it {key}.",
    ),
    closings=(
        "Thank you.",
        "Thanks!",
        "Regards, Anna",
        "Best, Tom",
        "Yours, Maria",
        "Peter",
    ),
)

EVAL_STATEMENTS = (
    "Unfortunately {product} {key}.",
    "I noticed today that {product} {key}.",
    "I have to report that {product} {key}, which is a pity.",
)

EVAL = Wording(
    openings=("Hey!", "Good afternoon.", "Dear customer service!", "Greetings."),
    requests={
        "refund": (
            "Could I get {key} on {product}?",
            "We were not happy with {product}, and I am asking for {key}.",
            "I am hoping for {key} after returning {product}.",
        ),
        "delivery_delay": EVAL_STATEMENTS,
        "defect": EVAL_STATEMENTS,
        "cancellation": (
            "Kindly {key} yesterday's order of {product}.",
            "I no longer need {product}, so I wish to {key} the purchase.",
            "Is it possible to {key} an order for {product}?",
        ),
        "question": (
            "Could you explain {key} of {product} to me?",
            "Before I decide on {product}, I am curious about {key}.",
            "Do you have details on {key} of {product}?",
        ),
    },
    mentions=("our {word}", "this {word}", "the white {word}"),
    with_number=(
        "For reference, the order is {number}.",
        "It was ordered as {number}.",
        "The confirmation mail says {number}.",
    ),
    without_number=(
        "Sadly the paperwork is gone.",
        "I never received an order number.",
    ),
    deadlines=(
        "Please see to this matter {key}.",
        "Could someone look into it {key}?",
        "Let me know {key}.",
    ),
    closings=("Cheers, Olga", "Sincerely, Sam", "Thanks in advance!", "Lee"),
)


def write_splits(folder: Path) -> None:
    """Write `train.jsonl` and `eval.jsonl` into the folder."""
    rng = Random(SEED)  # noqa: S311 - invented messages guard no secret
    taken: set[str] = set()
    for name, wording, count in (("train", TRAIN, TRAIN_ROWS), ("eval", EVAL, EVAL_ROWS)):
        tickets = draw_tickets(rng, count, taken)
        rows = [row(compose(rng, wording, ticket), ticket) for ticket in tickets]
        lines = "".join(json.dumps(each) + "\n" for each in rows)
        (folder / f"{name}.jsonl").write_bytes(lines.encode())


def row(message: str, ticket: Ticket) -> dict[str, list[dict[str, str]]]:
    """Return one example as a chat that ends with the right answer."""
    turns = {"system": SYSTEM, "user": message, "assistant": json.dumps(ticket._asdict())}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}


def draw_tickets(rng: Random, count: int, taken: set[str]) -> Iterator[Ticket]:
    """Draw tickets that use every label equally often and no order number twice."""
    intents = evenly(rng, INTENTS, count)
    products = evenly(rng, PRODUCTS, count)
    urgencies = evenly(rng, URGENCIES, count)
    shapes = evenly(rng, ORDER_SHAPES, count)
    numbers = [shape and fresh_number(rng, shape, taken) for shape in shapes]
    return map(Ticket, intents, products, urgencies, numbers)


def evenly(rng: Random, choices: Iterable[Choice], count: int) -> list[Choice]:
    """Return `count` items that repeat the choices equally often, shuffled."""
    items = list(islice(cycle(choices), count))
    rng.shuffle(items)
    return items


def fresh_number(rng: Random, shape: str, taken: set[str]) -> str:
    """Return an order number of this shape that is not taken, and mark it as taken."""
    while True:
        number = re.sub("d", lambda _: rng.choice(string.digits), shape)
        if number not in taken:
            taken.add(number)
            return number


def compose(rng: Random, wording: Wording, ticket: Ticket) -> str:
    """Write a ticket as a customer's message; the order is mentioned first, second or last."""
    sentences = [request(rng, wording, ticket), deadline(rng, wording, ticket)]
    sentences.insert(rng.randrange(3), order(rng, wording, ticket))
    return " ".join([rng.choice(wording.openings), *sentences, rng.choice(wording.closings)])


def request(rng: Random, wording: Wording, ticket: Ticket) -> str:
    """Return the sentence that states what the customer wants, and for which product."""
    word = rng.choice(PRODUCTS[ticket.product])
    sentence = rng.choice(wording.requests[ticket.intent]).format(
        key=rng.choice(INTENTS[ticket.intent]),
        product=rng.choice(wording.mentions).format(word=word),
    )
    return sentence[0].upper() + sentence[1:]


def order(rng: Random, wording: Wording, ticket: Ticket) -> str:
    """Return the sentence that names the order, or states that there is no number."""
    if ticket.order_number is None:
        return rng.choice(wording.without_number)
    return rng.choice(wording.with_number).format(number=ticket.order_number)


def deadline(rng: Random, wording: Wording, ticket: Ticket) -> str:
    """Return the sentence that states how soon the customer wants an answer."""
    return rng.choice(wording.deadlines).format(key=rng.choice(URGENCIES[ticket.urgency]))


if __name__ == "__main__":
    write_splits(Path(__file__).parent)
