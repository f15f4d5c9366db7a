"""English-like text without end or repetition: sentences drawn from templates, for needles to hide in.

It states no numbers and names no places of the world, so that nothing in it answers for a needle. All of it was
written for this purpose: a haystack of essays would be under their authors' rights.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

_PEOPLE = """
    apprentice archer baker barber beekeeper bookbinder boatman brewer builder carpenter clerk cobbler composer cook
    cousin dancer dentist diver doctor driver editor engineer farmer ferryman fiddler fisherman gardener glazier
    grocer guard guide hunter innkeeper inspector jeweller judge knitter lawyer librarian lighthouse-keeper locksmith
    merchant midwife miller miner musician neighbour nurse painter pharmacist pilot plumber poet porter postman potter
    printer ranger sailor sculptor sergeant shepherd singer stranger student surveyor tailor teacher traveller usher
    violinist visitor waiter weaver widow
"""
_MANNERS = """
    absent-minded ambitious bored careful cheerful clever cold-blooded courteous curious drowsy eager earnest elderly
    famous forgetful friendly gentle grateful grumpy hasty hesitant humble hungry impatient jealous lazy lonely modest
    nervous obedient old patient pensive polite proud quiet reliable restless shy silent sleepy stubborn talkative
    tired thoughtful timid unhurried young
"""
_THINGS = """
    accordion anchor armchair atlas axe barrel basket bell bench bicycle blanket bookcase boot box bracelet bridge
    broom bucket candlestick canvas cart chest clock coat compass cradle cupboard curtain desk diary drum envelope
    fence flute gate hammock harness hat helmet jar kettle kite ladder lantern letter loom map mattress medal mirror
    motor oar oven painting parcel pen piano picture pipe plough pot pump quilt raft rope rug saddle sail scarf
    sewing-machine shelf ship-model shovel sledge sofa spade stove suitcase table tapestry teapot telescope tent
    ticket trumpet trunk umbrella vase violin wagon wardrobe watch wheel whistle window-frame
"""
_QUALITIES = """
    ancient battered blue bright broken cheap clumsy cracked crooked dark delicate dusty elegant enormous expensive
    faded fragile green grey handmade heavy hollow invisible iron light long lost narrow new odd ordinary painted pale
    plain polished precious red round rusty scratched shabby sharp shiny simple slender small smooth soft solid square
    striped sturdy tall thin tiny wet wide wooden worn-out yellow
"""
# Past tense and participle alike.
_VERBS = """
    admired altered borrowed carried cleaned collected copied covered delivered described discovered dragged dropped
    emptied examined exchanged fetched finished gathered ignored inherited inspected lifted measured mended moved
    noticed opened ordered packed painted photographed polished praised purchased recognised refused remembered
    removed repaired replaced rescued returned sketched sorted stored studied tested touched unpacked unwrapped used
    washed watched weighed wrapped
"""
_PLACES = (
    "at the edge of the forest", "at the end of the lane", "at the market", "behind the barn", "behind the bakery",
    "below the cliffs", "beside the canal", "beside the mill", "between the two orchards", "by the harbour wall",
    "close to the station", "down by the river", "in the attic", "in the cellar", "in the courtyard",
    "in the empty theatre", "in the garden", "in the old library", "in the railway carriage", "in the schoolroom",
    "in the shadow of the tower", "in the upper valley", "in the village square", "inside the chapel",
    "near the frontier", "near the lighthouse", "next to the fountain", "on the back stairs", "on the ferry",
    "on the quay", "on the roof", "on the way to the coast", "outside the town hall", "over the stable",
    "under the arches", "under the chestnut trees", "under the kitchen table", "up in the hills",
)  # fmt: skip
_TIMES = (
    "a week later", "after breakfast", "after the concert", "after the first snow", "around noon",
    "as soon as it was light", "at dawn", "at dusk", "at the beginning of spring", "at the last moment",
    "before sunrise", "before the storm", "during the holidays", "during the long drought", "early in the morning",
    "every autumn", "in the dead of night", "in the middle of winter", "just before the bell rang",
    "late in the evening", "not long ago", "on a rainy afternoon", "on market day", "on the day of the wedding",
    "on the following day", "on the shortest day of the year", "one quiet evening", "some weeks before",
    "that same night", "the other day", "towards midnight", "when nobody was looking", "while the others slept",
    "without any warning",
)  # fmt: skip
_DOINGS = (
    "arguing about the price of flour", "combing the horses", "counting the empty seats", "feeding the geese",
    "filling the water jugs", "humming an old tune", "laying the fire", "listening to the rain",
    "looking for a dry match", "making soup", "mending a net", "peeling apples", "playing cards", "pretending to sleep",
    "reading the newspaper", "rehearsing a speech", "resting in the shade", "sharpening a knife", "sweeping the floor",
    "telling a long story", "tying up the roses", "waiting for the post", "walking the dog", "watching the clouds",
    "watering the beans", "winding wool", "writing to a friend",
)  # fmt: skip
_REASONS = (
    "it had belonged to somebody else", "it looked so out of place", "it reminded everyone of home",
    "it took up too much room", "it was said to bring luck", "no other one could be found", "nobody else would do it",
    "the fair was about to begin", "the guests were late", "the lamp had gone out", "the last one had been stolen",
    "the neighbours had complained", "the rent was due", "the river was rising", "the road was closed",
    "the roof had begun to leak", "the weather had turned", "there was nothing better to do", "there was still time",
    "winter was coming",
)  # fmt: skip
_EVENTS = (
    "a door slammed somewhere", "a long silence followed", "everybody went home", "it began to rain",
    "nobody said a word", "nothing was the same again", "the bells began to ring", "the children laughed aloud",
    "the dog refused to come in", "the fire had to be lit again", "the fog lifted at last", "the lights went out",
    "the matter was soon forgotten", "the moon came out", "the music started again", "the talk turned to other things",
    "the train had already left", "the whole street knew about it", "the wind changed", "there was tea for all",
)  # fmt: skip
_TEMPLATES = (
    "{Time}, the {manner} {person} {verb} the {quality} {thing} {place}.",
    "The {person} {verb} {a_thing} {place}, because {reason}.",
    "Nobody knew why the {manner} {person} {verb} the {quality} {thing} {time}.",
    "While the {person} was {doing} {place}, the {other} {verb} the {thing}.",
    "The {person} and the {other} talked about the {quality} {thing} {place} until {event}.",
    "If the {thing} had been less {quality}, the {manner} {person} would have {verb} it {time}.",
    "It was the {manner} {person} who {verb} the {thing} {place}, not the {other}.",
    "There was {a_thing} {place}, and {time} the {person} {verb} it.",
    "After the {manner} {person} had {verb} the {quality} {thing}, {event}.",
    "According to the {person}, the {thing} {place} was just as {quality} as the {second_manner} {other} had said.",
    "The {thing} that the {person} {verb} {time} was {quality} and rather {second}.",
    "Had the {person} really {verb} the {second} {thing} because {reason}?",
    "{Time} {event}, and the {manner} {person} {verb} the {thing} once more.",
    "Few people remembered the {thing} {place}, but the {manner} {other} had {verb} it {time}.",
    "The {other} was still {doing} when the {person} {verb} the {quality} {thing} {place}.",
)
_SENTENCES = (4, 9)  # of a paragraph, fewest and most


def generated_sentences(seed: int) -> Iterator[str]:
    """Distinct sentences without end; the same for the same seed."""
    rng = Random(f"haystack/{seed}")
    people, manners, things = _PEOPLE.split(), _MANNERS.split(), _THINGS.split()
    qualities, verbs = _QUALITIES.split(), _VERBS.split()
    seen: set[str] = set()
    while True:
        person, other = rng.sample(people, 2)
        manner, second_manner = rng.sample(manners, 2)
        quality, second = rng.sample(qualities, 2)
        thing, time = rng.choice(things), rng.choice(_TIMES)
        sentence = rng.choice(_TEMPLATES).format(
            person=person,
            other=other,
            manner=manner,
            second_manner=second_manner,
            thing=thing,
            a_thing=f"{_article(quality)} {quality} {thing}",
            quality=quality,
            second=second,
            verb=rng.choice(verbs),
            place=rng.choice(_PLACES),
            time=time,
            Time=time[0].upper() + time[1:],
            doing=rng.choice(_DOINGS),
            reason=rng.choice(_REASONS),
            event=rng.choice(_EVENTS),
        )
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def generated_paragraphs(megabytes: float, seed: int) -> list[str]:
    """Paragraphs of distinct sentences, in all at least `megabytes` million characters."""
    rng = Random(f"paragraphs/{seed}")
    sentences = generated_sentences(seed)
    paragraphs: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        paragraphs.append(" ".join(next(sentences) for _ in range(rng.randint(*_SENTENCES))))
        size += len(paragraphs[-1])
    return paragraphs


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
