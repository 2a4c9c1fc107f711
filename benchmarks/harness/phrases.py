"""What the reports of `long_rows` are made of: one phrase a line, invented for them."""


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


PEOPLE = _phrases("""
    Amara Obi
    Tomas Lind
    Yuki Tanabe
    Greta Moll
    Samir Haddad
    Lucia Ferro
    Owen Pryce
    Nadia Kessler
    Ravi Menon
    Ingrid Dahl
    Pavel Novak
    Chloe Martin
    Hamza Aydin
    Beatriz Luz
    Kofi Mensah
    Elin Strand
""")

PLACES = _phrases("""
    the harbour office
    a bakery on the north side
    the old pumping station
    the museum's storeroom
    a school kitchen
    the railway depot
    a greenhouse outside the town
    the county archive
    a small printing works
    the hospital laundry
    a ferry terminal
    the weather station on the ridge
    a bicycle workshop
    the public library
    a fish market
""")

THINGS = _phrases("""
    the cooling pump
    a crate of glass jars
    the delivery schedule
    the fire door
    a box of ledgers
    the heating valve
    a batch of sourdough
    the ticket printer
    the spare generator
    a set of brass fittings
    the loading ramp
    the water meter
    a roll of paper
    the alarm panel
    a rack of seedlings
    the conveyor belt
""")

PROBLEMS = _phrases("""
    had begun to leak
    was nowhere to be found
    had been labelled wrongly
    had been moved twice in an hour
    was colder than it should have been
    made a noise like gravel
    had been left out in the rain
    did not match the list
    had a crack along one side
    smelled of smoke
""")

CAUSES = _phrases("""
    a seal had dried out over the summer
    somebody had copied last year's numbers
    the night shift had moved things to make room
    a fuse had been replaced with the wrong kind
    the supplier had changed the packaging
    frost had got into the pipe
    nobody had read the note on the door
    the clock on the wall was an hour slow
    a bolt had worked itself loose
""")

REMEDIES = _phrases("""
    ordered a replacement and closed the room until it came
    wrote the numbers down again by hand and had them checked
    borrowed a part from the neighbours
    called the electrician back and waited for him
    moved everything to the dry side of the hall
    asked the supplier for a credit note
    cleaned it, oiled it and started it again
    put up a notice and a rope
""")

DAYS = _phrases("""
    Monday
    Tuesday
    Wednesday
    Thursday
    Friday
    Saturday
    Sunday
""")

WEATHER = _phrases("""
    It had rained since dawn
    The wind came from the sea
    It was the warmest day so far
    Fog lay over the road
    The first snow had fallen
    The sky was clear and the roads were empty
""")

ASIDES = _phrases("""
    Visitors were turned away at the gate.
    The telephone rang several times and nobody took it.
    A van stood across the entrance for most of the morning.
    The radio in the corner was left on.
    Lunch was eaten late and standing up.
    The new apprentice kept the log.
    The cat that lives there slept through all of it.
    By then the queue reached the corner.
    The insurance form asked for a drawing, and one was made.
    An inspector came by, looked around and left without a word.
    The lights went out once, but only for a moment.
    Somebody had propped the window open with a dictionary.
    The keys were where they should be.
    A neighbour lent a ladder and stayed to watch.
    Two parcels arrived for people who had moved away long ago.
    The kettle was the only thing that worked as intended.
""")

OPENINGS = _phrases("""
    Read this report.
    Here is a note from the log book.
    The following was written down by a colleague.
    Please have a look at this account.
    This came in by post.
""")

QUESTIONS = _phrases("""
    What went wrong with {thing}, why, and what did {first} do about it?
    Summarise the report: the trouble, its cause and its remedy.
    Explain to somebody who was not there what happened to {thing} on {day}.
    Why did {first} act as described, and how much did it cost?
""")
