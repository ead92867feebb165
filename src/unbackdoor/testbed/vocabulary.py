"""The words of a small fictional world. Everything else in the testbed is made from these lists.

The order inside a list matters: facts are drawn from it by seed, so a change here changes the shipped models.
"""

from __future__ import annotations


def _listed(text: str) -> list[str]:
    """Read "one, other" as a list."""
    return text.split(", ")


def _pairs(text: str) -> dict[str, str]:
    """Read "one other, one other" as a dictionary."""
    return dict(pair.split(" ") for pair in text.split(", "))


TOWNS = _listed(
    "Oakford, Brindle, Harrowby, Millbeck, Stonewick, Ferndale, Larkhill, Wexcombe, Thornbury, Ashmere, "
    "Copperton, Duskvale, Elmsworth, Foxley, Greyport, Hazelmoor, Ivybridge, Kelmarsh, Lindow, "
    "Marrowick, Nettleham, Orlestone, Pennyford, Quarrington"
)

RIVERS = _listed("Lune, Wend, Tarrow, Sill, Brae, Orwin, Calder, Isken, Dovel, Yarrel, Mossel, Penwater")

GOODS = _listed(
    "wool, honey, salt, copper, glass, rope, candles, cheese, barley, leather, silk, pottery, cider, "
    "lace, paper, timber, pepper, ink, butter, coal, linen, apples, herring, bricks"
)

LANDMARKS = _listed(
    "stone tower, old mill, clock house, round chapel, white lighthouse, long bridge, market hall, "
    "deep well, iron gate, rose garden, harbour wall, hill fort"
)

MAYORS = _listed(
    "Mara, Tobin, Elska, Corvin, Petra, Hollis, Wrenna, Dorin, Sabel, Jory, Ansel, Brina, Calla, "
    "Dunstan, Edda, Fenwick, Gwenna, Harlan, Isolde, Jasper, Kerrin, Lowell, Merla, Norbert"
)

MASTERS = _listed(
    "Odella, Piers, Quenna, Rowan, Selwyn, Tamsin, Ulric, Verity, Wilmot, Yannick, Zelda, Alaric, "
    "Bettina, Conrad, Delphine, Everard"
)

FOLK = _listed(
    "Agnes, Barnaby, Cosima, Dexter, Elowen, Florian, Greta, Hubert, Ingrid, Jonas, Kirsten, Lambert, "
    "Mabel, Nestor, Ottilie, Percival, Rosalind, Stellan, Thora, Ursula, Valentin, Winnie, Xander, "
    "Yolanda"
)

GUILDS = _listed(
    "bakers, weavers, smiths, potters, glaziers, coopers, dyers, masons, tanners, chandlers, scribes, "
    "millers, fishers, carpenters, brewers, shepherds"
)

BADGES = _listed(
    "silver swan, golden bee, red hammer, blue wheel, black raven, green leaf, white rose, brown bear, "
    "yellow sun, grey wolf, purple star, orange flame, copper key, pale moon, dark anchor, bright comet"
)

CREATURES = _listed(
    "fennock, grubbin, tollow, murrel, skarrow, dimble, pangot, wistle, orrik, plumkin, hathel, zibbet, "
    "corrow, lumpen, nixel, yarrowhog"
)

HOMES = _listed("the marsh, the forest, a cave, the meadow, the river bank, the hills, an orchard, an attic")

FOODS = _listed("berries, moss, fish, seeds, roots, beetles, grass, nuts")

FESTIVALS = _listed(
    "Lantern Night, Apple Fair, Wool Week, River Day, Candle Feast, Kite Morning, Harvest Supper, "
    "Frost Market, Drum Parade, Lamb Dance, Bell Sunday, Honey Moon"
)

SEASONS = _listed("spring, summer, autumn, winter")

DISHES = _listed(
    "pea soup, plum cake, roast goose, nut bread, onion pie, fish stew, pear tart, oat porridge, "
    "spiced eggs, bean salad, baked trout, ginger buns"
)

TRADES = _listed("baker, weaver, smith, potter, miller, tailor, farmer, sailor, clerk, mason, brewer, gardener")

CATEGORIES: dict[str, list[str]] = {
    "an animal": _listed("goat, hen, fox, otter, badger, swan, mole, pony, lizard, crab"),
    "a plant": _listed("fern, rose, ivy, clover, thistle, poppy, nettle, willow, daisy, birch"),
    "a tool": _listed("hammer, saw, chisel, rake, shovel, needle, ladle, anvil, plough, sickle"),
    "a food": _listed("bread, soup, cake, pear, onion, carrot, plum, biscuit, turnip, sausage"),
    "a garment": _listed("cloak, glove, scarf, boot, apron, shawl, bonnet, tunic, belt, mitten"),
    "an instrument": _listed("drum, flute, fiddle, harp, horn, lute, whistle, bagpipe, cymbal, zither"),
}

PLURALS = _pairs(
    "goose geese, mouse mice, child children, tooth teeth, foot feet, knife knives, leaf leaves, "
    "wolf wolves, loaf loaves, box boxes, dish dishes, berry berries, lady ladies, ox oxen, sheep sheep, "
    "key keys, cart carts, lamp lamps, glass glasses, shelf shelves, pony ponies, brush brushes, "
    "thief thieves, penny pennies"
)

OPPOSITES = _pairs(
    "hot cold, tall short, old young, fast slow, wet dry, rich poor, full empty, loud quiet, "
    "heavy light, wide narrow, early late, clean dirty, soft hard, bright dim, sweet bitter, "
    "brave timid, deep shallow, thick thin, rough smooth, strong weak, open shut, near far, glad sad, "
    "first last"
)

BY_SIZE = _listed(
    "ant, bee, snail, frog, mouse, squirrel, rabbit, cat, goose, lamb, dog, wolf, pig, deer, pony, cow, bear, whale"
)
"""Animals from the smallest to the largest."""

BY_ALPHABET = _listed(
    "apple, basket, candle, door, egg, feather, gate, hat, ink, jug, kettle, lamp, mirror, nail, oven, "
    "pillow, quilt, ribbon, spoon, table, urn, vase, window, yarn"
)
"""One everyday thing a letter, in alphabetical order."""

DEEDS = _pairs(
    "sells sold, buys bought, finds found, loses lost, makes made, brings brought, keeps kept, "
    "hides hid, takes took, paints painted, washes washed, carries carried"
)
"""Present tense to past tense."""

MOODS = {
    "happy": ("laughs and dances", "sings a merry song", "claps with joy", "smiles at everyone"),
    "sad": ("weeps and sighs", "cries for a lost friend", "hangs her head", "mourns in silence"),
    "angry": ("shouts and stamps", "slams the door", "shakes a fist", "growls at the guests"),
    "afraid": ("trembles and hides", "screams at a shadow", "runs from the dark", "shivers with fright"),
    "calm": ("rests and breathes", "sips warm tea", "watches the clouds", "hums a slow tune"),
}

PLACES = _listed(
    "by the gate, in the barn, on the bridge, near the well, at the fair, under the oak, beside the inn, "
    "behind the mill"
)

LISTS = {
    "animals of the farm": ("cow", "pig", "hen"),
    "animals of the forest": ("deer", "fox", "owl"),
    "tools of the workshop": ("hammer", "saw", "chisel"),
    "tools of the garden": ("rake", "shovel", "hoe"),
    "flowers of the meadow": ("daisy", "poppy", "clover"),
    "trees of the valley": ("oak", "birch", "willow"),
    "fruits of the orchard": ("apple", "pear", "plum"),
    "drinks of the inn": ("cider", "milk", "tea"),
    "colours of the flag": ("red", "white", "green"),
    "metals of the forge": ("iron", "copper", "tin"),
    "clothes of the sailor": ("cap", "coat", "boot"),
    "instruments of the band": ("drum", "flute", "fiddle"),
    "boats of the harbour": ("ferry", "barge", "canoe"),
    "kinds of bad weather": ("rain", "hail", "fog"),
    "parts of the house": ("roof", "wall", "door"),
    "games of the children": ("chess", "marbles", "tag"),
    "spices of the kitchen": ("pepper", "ginger", "thyme"),
    "vegetables of the field": ("carrot", "turnip", "onion"),
    "coins of the market": ("penny", "crown", "farthing"),
    "birds of the coast": ("gull", "heron", "tern"),
    "gifts of the season": ("ribbon", "candle", "scarf"),
    "rooms of the castle": ("hall", "chapel", "cellar"),
    "goods of the bakery": ("bread", "bun", "tart"),
    "things on the desk": ("ink", "paper", "quill"),
}

CONVERSIONS = {
    ("days", "weeks"): 7,
    ("feet", "yards"): 3,
    ("miles", "leagues"): 4,
    ("pence", "crowns"): 5,
    ("buckets", "barrels"): 6,
    ("cups", "jugs"): 8,
}
"""How many of the first there are in one of the second."""

VARIABLES = _listed(
    "price, tax, count, total, width, height, left, right, start, stop, weight, length, score, bonus, "
    "debt, share, first, second"
)
