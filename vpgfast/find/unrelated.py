"""Sentences about many things, none of them likely in a given video: what they score there is what chance scores."""

UNRELATED = tuple(
    line.strip()
    for line in """
    A violinist tunes her instrument before the concert.
    Two goats climb a steep rock.
    The train leaves the station in the snow.
    Someone paints a fence white.
    A chess player thinks about the next move.
    Waves break against a lighthouse.
    A mechanic changes the oil of a truck.
    Children build a snowman.
    A surgeon puts on gloves.
    The librarian sorts old books.
    A helicopter lands on a roof.
    He carves a pumpkin for Halloween.
    A potter shapes a bowl on the wheel.
    Bees fly around their hive.
    A judge speaks in court.
    The astronaut floats through the space station.
    A baker takes bread out of the oven.
    Elephants drink at a river.
    A woman waters the plants on her balcony.
    The orchestra plays a symphony.
    A fisherman mends his net.
    Someone shuffles a deck of cards.
    A crane lifts steel beams.
    The dentist examines a patient.
    A man ties a bow tie in front of a mirror.
    Penguins walk across the ice.
    A hot air balloon rises at dawn.
    They pick grapes in a vineyard.
    A soldier salutes the flag.
    The cat sleeps on a keyboard.
    A diver explores a coral reef.
    She folds paper into a crane.
    A clown juggles three balls.
    The farmer milks a cow.
    A motorcyclist puts on a helmet.
    Lightning strikes behind the hills.
    Someone peels potatoes.
    A ballet dancer stretches at the bar.
    The plumber repairs a pipe under the sink.
    Students write an exam in silence.
    A parrot repeats a word.
    He shovels coal into a furnace.
    A ferry crosses the lake.
    The tailor measures a sleeve.
    Fireworks light up the harbour.
    A boy flies a kite in the park.
    The nurse takes a blood sample.
    A sculptor chisels marble.
    Someone vacuums the carpet.
    A wolf howls in the forest.
    The waiter pours red wine.
    Skaters turn on a frozen pond.
    A girl blows out birthday candles.
    The climber reaches the summit.
    An old man feeds pigeons.
    A rocket is moved to the launch pad.
    They hang up the washing.
    A blacksmith hammers hot iron.
    The teacher wipes the blackboard.
    A spider spins its web.
    """.strip().splitlines()
)
