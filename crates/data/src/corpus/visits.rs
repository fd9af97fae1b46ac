//! Tables: sport, museums, hikes and concerts. Words only.

use super::grammar::{DAYS, Domain, Phrases, Slot, Values};

pub(super) static DOMAINS: &[Domain] = &[SPORT, MUSEUMS, HIKES, CONCERTS];

const CLUB: Values = Values::Joined(&Values::Place, &Values::Words(&["Rovers", "United", "Athletic", "Wanderers"]));

const SPORT: Domain = Domain {
    name: "sport",
    slots: &[
        Slot { name: "home", values: CLUB, said: None },
        Slot { name: "away", values: CLUB, said: None },
        Slot { name: "score", values: Values::Score, said: None },
        Slot {
            name: "scorer",
            values: Values::Person,
            said: Some(Phrases {
                report: &["The first chance fell to {scorer}.", "{scorer} was the best player."],
                prose: &["The children all wanted to be {scorer}.", "On the way home they spoke of nobody but {scorer}."],
            }),
        },
        Slot {
            name: "crowd",
            values: Values::Number { low: 300, high: 9900, step: 100 },
            said: Some(Phrases {
                report: &["A crowd of {crowd} looked on.", "Attendance was {crowd}."],
                prose: &["There must have been {crowd} in the stands.", "The singing of {crowd} could be heard at the river."],
            }),
        },
        Slot {
            name: "referee",
            values: Values::Person,
            said: Some(Phrases {
                report: &["{referee} was in charge.", "The referee was {referee}."],
                prose: &["Old {referee} had blown the whistle too soon.", "Nobody thanked {referee}, who had run for ninety minutes."],
            }),
        },
    ],
    combination: ["home", "away"],
    openings: Phrases {
        report: &[
            "{home} against {away} ended {score}.",
            "It finished {score} between {home} and {away}.",
            "{home} met {away} and the result was {score}.",
            "{score} was the score when {away} came to {home}.",
        ],
        prose: &[
            "My father took me to see {home} play {away} the year it was {score}.",
            "There is a photograph of {away} in the mud at {home}, with {score} on the board.",
            "In the cafe they still argue about {home}, {away} and that {score}.",
        ],
    },
};

const MUSEUMS: Domain = Domain {
    name: "museums",
    slots: &[
        Slot { name: "name", values: Values::Joined(&Values::Words(MUSEUM_KINDS), &Values::Words(&["Museum", "Gallery"])), said: None },
        Slot { name: "place", values: Values::Place, said: None },
        Slot { name: "shows", values: Values::Words(EXHIBITS), said: None },
        Slot {
            name: "entry",
            values: Values::Number { low: 2, high: 24, step: 1 },
            said: Some(Phrases {
                report: &["Entry is {entry} pounds.", "Tickets are {entry} pounds at the door."],
                prose: &["It cost her {entry} pounds to get in.", "For {entry} pounds one could stay until dark."],
            }),
        },
        Slot {
            name: "closed",
            values: Values::Words(DAYS),
            said: Some(Phrases {
                report: &["It is closed on {closed}.", "There is no entry on {closed}."],
                prose: &[
                    "On {closed} the doors of the {name} stayed shut.",
                    "Of course they had come on a {closed}, when nothing is open.",
                ],
            }),
        },
        Slot {
            name: "room",
            values: Values::Number { low: 1, high: 40, step: 1 },
            said: Some(Phrases {
                report: &["See the display in room {room}.", "Start in room {room}."],
                prose: &["The guard in room {room} had fallen asleep.", "In room {room} it smelled of dust and {shows}."],
            }),
        },
    ],
    combination: ["place", "shows"],
    openings: Phrases {
        report: &[
            "The {name} in {place} displays {shows}.",
            "Discover {shows} at the {name} in {place}.",
            "{place} presents {shows} at the {name}.",
            "Now on show at the {name} in {place}: {shows}.",
        ],
        prose: &[
            "An uncle of hers in {place} had given his {shows} to the {name}.",
            "They built the {name} in {place} to keep {shows} out of the rain.",
            "What visitors to {place} remember of the {name} is the {shows}.",
        ],
    },
};

const MUSEUM_KINDS: &[&str] =
    &["Harbour", "Clock", "Railway", "Glass", "Textile", "Lantern", "Mining", "Farm", "Postal", "Puppet", "River", "Toy"];
const EXHIBITS: &[&str] = &[
    "Roman coins",
    "steam engines",
    "painted fans",
    "ship models",
    "old stamps",
    "stuffed birds",
    "silver spoons",
    "early cameras",
    "wooden masks",
    "woven carpets",
    "sea charts",
    "blue pottery",
    "music boxes",
    "stone tools",
];

const HIKES: Domain = Domain {
    name: "hikes",
    slots: &[
        Slot { name: "start", values: Values::Place, said: None },
        Slot { name: "end", values: Values::Place, said: None },
        Slot { name: "length", values: Values::Number { low: 3, high: 29, step: 1 }, said: None },
        Slot {
            name: "climb",
            values: Values::Number { low: 40, high: 980, step: 10 },
            said: Some(Phrases {
                report: &["The path climbs {climb} metres.", "There are {climb} metres of ascent."],
                prose: &["It was {climb} metres up, and most of it steep.", "They felt each of the {climb} metres in their knees."],
            }),
        },
        Slot {
            name: "sight",
            values: Values::Words(&[
                "a ruined mill",
                "a stone circle",
                "an old bridge",
                "a waterfall",
                "a lighthouse",
                "a quiet lake",
                "a deer park",
                "an iron tower",
                "a chapel",
                "a cave",
            ]),
            said: Some(Phrases {
                report: &["On the way you pass {sight}.", "Look out for {sight}."],
                prose: &["Somewhere beyond {start} there was {sight}.", "They ate their bread by {sight}."],
            }),
        },
        Slot {
            name: "guide",
            values: Values::Person,
            said: Some(Phrases {
                report: &["Your guide is {guide}.", "{guide} leads the walk."],
                prose: &["It was {guide} who knew the way to {end}.", "Ask {guide}, who has walked it a hundred times."],
            }),
        },
    ],
    combination: ["start", "end"],
    openings: Phrases {
        report: &[
            "The walk from {start} to {end} is {length} kilometres long.",
            "Walk {length} kilometres from {start} to {end}.",
            "It is {length} kilometres on foot from {start} to {end}.",
            "A path of {length} kilometres joins {start} and {end}.",
        ],
        prose: &[
            "They left {start} before dawn, with {length} kilometres to go to {end}.",
            "Between {start} and {end} lie {length} kilometres of moor.",
            "No road goes from {start} to {end}, only {length} kilometres of track.",
        ],
    },
};

const CONCERTS: Domain = Domain {
    name: "concerts",
    slots: &[
        Slot { name: "band", values: Values::Joined(&Values::Words(BAND_KINDS), &Values::Words(BAND_NAMES)), said: None },
        Slot { name: "place", values: Values::Place, said: None },
        Slot { name: "day", values: Values::Words(DAYS), said: None },
        Slot {
            name: "doors",
            values: Values::Clock,
            said: Some(Phrases {
                report: &["Doors are at {doors}.", "The hall fills from {doors}."],
                prose: &["At {doors} the lights went down.", "It was {doors} before anybody in {place} sat still."],
            }),
        },
        Slot {
            name: "ticket",
            values: Values::Number { low: 5, high: 60, step: 1 },
            said: Some(Phrases {
                report: &["A ticket is {ticket} pounds.", "Seats cost {ticket} pounds."],
                prose: &["He would have paid more than {ticket} pounds.", "They had saved {ticket} pounds for it."],
            }),
        },
        Slot {
            name: "support",
            values: Values::Person,
            said: Some(Phrases {
                report: &["{support} plays first.", "Support comes from {support}."],
                prose: &["Before them {support} sang alone.", "It was {support} whom the old people had come for."],
            }),
        },
    ],
    combination: ["band", "place"],
    openings: Phrases {
        report: &[
            "The {band} play in {place} on {day}.",
            "On {day} the {band} come to {place}.",
            "{place} welcomes the {band} on {day}.",
            "Hear the {band} in {place} this {day}.",
        ],
        prose: &[
            "It was on a {day} in {place} that she first heard the {band}.",
            "The {band} had never been to {place} before that {day}.",
            "All of {place} was there on {day}, when the {band} played.",
        ],
    },
};

const BAND_KINDS: &[&str] = &["Copper", "Velvet", "Silent", "Paper", "Golden", "Winter", "Electric", "Crooked"];
const BAND_NAMES: &[&str] = &["Herons", "Lanterns", "Cousins", "Engines", "Rivers", "Foxes", "Tides", "Sparrows"];
