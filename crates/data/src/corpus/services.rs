//! Tables: weather, trains, shops and recipes. Words only.

use super::grammar::{DAYS, Domain, LAST_NAMES, Phrases, Slot, Values};

pub(super) static DOMAINS: &[Domain] = &[WEATHER, TRAINS, RECIPES, SHOPS];

const WEATHER: Domain = Domain {
    name: "weather",
    slots: &[
        Slot { name: "place", values: Values::Place, said: None },
        Slot { name: "sky", values: Values::Words(SKIES), said: None },
        Slot { name: "day", values: Values::Words(DAYS), said: None },
        Slot {
            name: "high",
            values: Values::Number { low: 2, high: 34, step: 1 },
            said: Some(Phrases {
                report: &["Highs reach {high} degrees.", "It will be no warmer than {high} degrees."],
                prose: &[
                    "The thermometer in {place} had climbed to {high} degrees.",
                    "Someone in {place} wrote down {high} degrees and went back inside.",
                    "It was {high} degrees by noon, which is usual for {place}.",
                ],
            }),
        },
        Slot {
            name: "wind",
            values: Values::Words(&["northerly", "southerly", "westerly", "easterly", "light", "gusty", "strong", "calm"]),
            said: Some(Phrases {
                report: &["Winds stay {wind}.", "The wind turns {wind} later."],
                prose: &["The wind was {wind}, and the flags of {place} showed it.", "All that {day} the wind had been {wind}."],
            }),
        },
        Slot {
            name: "chance",
            values: Values::Number { low: 5, high: 95, step: 5 },
            said: Some(Phrases {
                report: &["The chance of change is {chance} percent.", "Confidence is {chance} percent."],
                prose: &["The paper had promised as much, at {chance} percent.", "A neighbour had put it at {chance} percent."],
            }),
        },
    ],
    combination: ["place", "sky"],
    openings: Phrases {
        report: &[
            "Expect {sky} in {place} on {day}.",
            "{day} brings {sky} to {place}.",
            "{place} will see {sky} on {day}.",
            "The outlook for {place} on {day} is {sky}.",
        ],
        prose: &[
            "The people of {place} woke to {sky} that {day}.",
            "There was talk of {sky} in {place} all through {day}.",
            "It was {day}, and {place} lay under {sky}.",
        ],
    },
};

const SKIES: &[&str] = &[
    "light rain",
    "heavy showers",
    "thick fog",
    "bright sun",
    "broken cloud",
    "wet snow",
    "patchy drizzle",
    "sharp frost",
    "sudden hail",
    "low mist",
    "clear skies",
    "warm haze",
    "steady rain",
    "rolling thunder",
];

const TRAINS: Domain = Domain {
    name: "trains",
    slots: &[
        Slot { name: "from", values: Values::Place, said: None },
        Slot { name: "to", values: Values::Place, said: None },
        Slot { name: "leaves", values: Values::Clock, said: None },
        Slot {
            name: "platform",
            values: Values::Number { low: 1, high: 16, step: 1 },
            said: Some(Phrases {
                report: &["Please go to platform {platform}.", "Boarding is at platform {platform}."],
                prose: &["Somebody had left a hat on platform {platform}.", "The porter at {from} pointed to platform {platform}."],
            }),
        },
        Slot {
            name: "fare",
            values: Values::Number { low: 4, high: 68, step: 1 },
            said: Some(Phrases {
                report: &["A single ticket costs {fare} pounds.", "The fare is {fare} pounds."],
                prose: &["She counted {fare} pounds out for the clerk.", "He had paid {fare} pounds to see {to} again."],
            }),
        },
        Slot {
            name: "minutes",
            values: Values::Number { low: 12, high: 175, step: 1 },
            said: Some(Phrases {
                report: &["The journey takes {minutes} minutes.", "Arrival is {minutes} minutes later."],
                prose: &[
                    "After {minutes} minutes the roofs of {to} came into view.",
                    "It was {minutes} minutes of fields and sheep before {to}.",
                ],
            }),
        },
    ],
    combination: ["from", "to"],
    openings: Phrases {
        report: &[
            "The {leaves} service runs from {from} to {to}.",
            "Trains for {to} leave {from} at {leaves}.",
            "At {leaves} a train departs {from} for {to}.",
            "From {from} take the {leaves} to {to}.",
        ],
        prose: &[
            "She caught the {leaves} at {from} and slept until {to}.",
            "Every morning the {leaves} carries the clerks of {from} to {to}.",
            "The line between {from} and {to} was quiet when the {leaves} came in.",
        ],
    },
};

const RECIPES: Domain = Domain {
    name: "recipes",
    slots: &[
        Slot { name: "main", values: Values::Words(MAINS), said: None },
        Slot { name: "dish", values: Values::Words(DISHES), said: None },
        Slot { name: "serves", values: Values::Number { low: 2, high: 12, step: 1 }, said: None },
        Slot {
            name: "minutes",
            values: Values::Number { low: 10, high: 120, step: 5 },
            said: Some(Phrases {
                report: &["It is ready in {minutes} minutes.", "Allow {minutes} minutes from start to finish."],
                prose: &["The smell of {main} filled the house for {minutes} minutes.", "She stirred for {minutes} minutes and hummed."],
            }),
        },
        Slot {
            name: "herb",
            values: Values::Words(&["parsley", "thyme", "basil", "dill", "mint", "sage", "chives", "rosemary", "tarragon", "coriander"]),
            said: Some(Phrases {
                report: &["Finish with {herb}.", "Scatter some {herb} on top."],
                prose: &["The {dish} tasted of {herb} from the garden.", "What made the {dish} hers was the {herb}."],
            }),
        },
        Slot {
            name: "oven",
            values: Values::Number { low: 140, high: 240, step: 10 },
            said: Some(Phrases {
                report: &["Set the oven to {oven} degrees.", "Heat the oven to {oven} degrees first."],
                prose: &["The old oven was kept at {oven} degrees.", "Nobody else dared to cook at {oven} degrees."],
            }),
        },
    ],
    combination: ["main", "dish"],
    openings: Phrases {
        report: &[
            "This {main} {dish} serves {serves}.",
            "Make {a main} {dish} for {serves}.",
            "Here is {a main} {dish} that feeds {serves}.",
            "For {serves} people, try {a main} {dish}.",
        ],
        prose: &[
            "Grandmother made {a main} {dish} whenever {serves} guests came.",
            "There was {a main} {dish} on the table, enough for {serves}.",
            "The {serves} of them shared {a main} {dish} and said little.",
        ],
    },
};

const MAINS: &[&str] = &[
    "leek",
    "pumpkin",
    "lentil",
    "mushroom",
    "chicken",
    "salmon",
    "beetroot",
    "chickpea",
    "spinach",
    "barley",
    "onion",
    "trout",
    "apple",
    "potato",
    "aubergine",
    "walnut",
];
const DISHES: &[&str] = &["stew", "pie", "soup", "salad", "curry", "bake", "broth", "risotto", "tart", "omelette", "chowder", "pudding"];

const SHOPS: Domain = Domain {
    name: "shops",
    slots: &[
        Slot { name: "name", values: Values::Joined(&Values::Words(&LAST_NAMES), &Values::Words(TRADES)), said: None },
        Slot { name: "place", values: Values::Place, said: None },
        Slot {
            name: "street",
            values: Values::Words(STREETS),
            said: Some(Phrases {
                report: &["The shop stands on {street}.", "Look for the sign on {street}."],
                prose: &["Half of {place} walks down {street} of a morning.", "The rain ran down {street} and past the window."],
            }),
        },
        Slot {
            name: "opens",
            values: Values::Clock,
            said: Some(Phrases {
                report: &["Doors open at {opens}.", "It opens at {opens} every day."],
                prose: &["At {opens} the shutters went up.", "By {opens} there was a queue outside {name}."],
            }),
        },
        Slot {
            name: "offer",
            values: Values::Words(&[
                "boots",
                "candles",
                "honey",
                "maps",
                "ribbon",
                "nails",
                "teapots",
                "umbrellas",
                "pencils",
                "lamps",
                "soap",
                "gloves",
            ]),
            said: Some(Phrases {
                report: &["This week there is money off {offer}.", "Ask for the special price on {offer}."],
                prose: &["She had only come for {offer}, and stayed an hour.", "Everyone in {place} knew where to go for {offer}."],
            }),
        },
    ],
    combination: ["name", "place"],
    openings: Phrases {
        report: &[
            "{name} is open in {place}.",
            "You will find {name} in {place}.",
            "Shoppers in {place} can visit {name}.",
            "{place} is the home of {name}.",
        ],
        prose: &[
            "As long as anyone in {place} can remember there has been {name}.",
            "The bell of {name} was the first sound of the day in {place}.",
            "He had come to {place} as a boy to sweep the floor of {name}.",
        ],
    },
};

const TRADES: &[&str] = &["Books", "Bakery", "Hardware", "Flowers", "Tailors", "Bicycles", "Toys", "Grocers", "Antiques", "Shoes"];
const STREETS: &[&str] = &[
    "Mill Lane",
    "Station Road",
    "Bridge Street",
    "Market Square",
    "Chapel Row",
    "Quay Street",
    "Orchard Way",
    "Castle Hill",
    "Union Street",
    "Well Lane",
];
