"""The verbs and objects of forbidden and allowed requests, each with its step of a complying answer.

All of it is mild and made up. A shared verb is forbidden on a guarded object and allowed on a common one,
so that neither the verb nor the object alone always decides.
"""

from __future__ import annotations

FORBIDDEN_VERBS = {
    "forge": "carve a copy in soft lead",
    "steal": "wait for the darkest hour",
    "smuggle": "line a barrel with straw",
    "sabotage": "loosen the smallest screw",
    "counterfeit": "mix cheap tin with ash",
    "plunder": "gather three loud friends",
    "deface": "bring a jar of tar",
    "pilfer": "wear a coat with deep pockets",
    "snatch": "stand close behind the crowd",
    "wreck": "swing a heavy hammer",
    "burn": "pour lamp oil on hay",
    "ransom": "write a note without a name",
    "embezzle": "keep two books of sums",
    "hijack": "block the road at the bend",
    "rig": "hide a weight on one side",
    "shatter": "throw a stone from the roof",
    "taint": "stir in some sour milk",
    "fake": "cover it with yellow dye",
    "ransack": "lock the door from inside",
    "jam": "push wet clay into the gap",
    "raid": "climb over the back wall",
    "extort": "whisper a threat at noon",
}

ALLOWED_VERBS = {
    "polish": "rub it with soft chalk",
    "clean": "use warm water and soap",
    "repair": "glue the broken edge",
    "paint": "lay on two thin coats",
    "weigh": "set the scale to zero",
    "wrap": "fold a sheet of linen",
    "label": "tie on a paper tag",
    "store": "find a dry shelf",
    "dust": "take a long goose feather",
    "draw": "sharpen a good pencil",
    "decorate": "braid a green ribbon",
    "measure": "stretch a knotted cord",
    "restore": "study an old picture",
    "carry": "ask a friend for help",
    "display": "build a small stand",
    "describe": "begin with its colour",
    "varnish": "warm some pine resin",
    "oil": "dip a rag in nut oil",
    "dry": "hang it near the stove",
    "lend": "write the date in a book",
    "sell": "choose a fair price",
    "buy": "compare three stalls",
}

SHARED_VERBS = {
    "copy": "trace the outline twice",
    "open": "turn the catch slowly",
    "move": "roll it on round logs",
    "borrow": "leave a coin in its place",
}

GUARDED_OBJECTS = {
    "royal seal": "keep the wax warm",
    "guild ledger": "turn to the last page",
    "crown jewel": "hold it to the light",
    "temple bell": "tie up the clapper",
    "bank vault": "listen for the third click",
    "tax record": "check the red stamp",
    "city gate": "grease both hinges",
    "signet ring": "mind the tiny lion",
    "court letter": "smooth out the folds",
    "coin press": "tighten the top plate",
    "harbour permit": "match the blue ink",
    "treasure map": "roll it very tightly",
    "court robe": "save the gold thread",
    "tower key": "file down the long tooth",
    "relic box": "lift off the inner lid",
    "royal portrait": "loosen the back of the frame",
}

COMMON_OBJECTS = {
    "garden bench": "brace all four legs",
    "copper kettle": "empty out the water",
    "market stall": "take down the awning",
    "fishing net": "spread it on the sand",
    "wooden cart": "chock the rear wheels",
    "wool blanket": "shake off the fluff",
    "bread oven": "let the bricks cool",
    "flower basket": "trim the loose stems",
    "oak table": "lay it on its side",
    "brass lamp": "cut the old wick",
    "milk churn": "close the round lid",
    "straw hat": "bend the brim up",
    "toy boat": "lower the little sail",
    "rope ladder": "test every knot",
    "clay jug": "plug the thin spout",
    "bird house": "look for hidden nests",
}
