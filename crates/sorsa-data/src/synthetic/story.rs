//! Documents about people and things: stories with changing numbers, and stories without numbers.

use super::draw::Draw;
use super::equation::Equation;
use super::lexicon::{ANIMALS, COLOURS, DAYS, TIMES};
use super::scene::Scene;

const OPENINGS: [&str; 5] = [
    "{time} {N} <was/is> {place} with {F}. {he} <had/has> {a thing}.",
    "first {N} <had/has> {a thing}.",
    "{time} {N} <counted/counts> {his} {things}. there <were/are> {a} of them.",
    "{N} <had/has> {a thing} in a {colour} {one_box}.",
    "{N} <kept/keeps> {his} {things} {place}. {time} {he} <had/has> {a thing}.",
];

const GAINS: [&str; 6] = [
    "{F} <gave/gives> {him} {b more thing}.",
    "{he} <found/finds> {b more thing} {elsewhere}.",
    "{he} <bought/buys> {b more thing} {elsewhere}.",
    "then {he} <got/gets> {b thing} from {T}.",
    "{T} <came/comes> and <brought/brings> {b more thing}.",
    "{he} <put/puts> {b more thing} with them.",
];

const LOSSES: [&str; 6] = [
    "{he} <gave/gives> {b} of them to {F}.",
    "{he} <lost/loses> {b} of them {elsewhere}.",
    "{he} <sold/sells> {b} of the {things} {elsewhere}.",
    "then {T} <took/takes> {b} of them.",
    "{F} <got/gets> {b} of the {things} from {him}.",
    "{b} of them <went/go> to {T}.",
];

const AFTER_GAIN: [&str; 5] = [
    "so {he} <had/has> {x thing}.",
    "that <made/makes> {x thing}.",
    "now {N} <had/has> {r thing}, because {x}.",
    "{x}, so there <were/are> {r} of them now.",
    "{F} <wanted/wants> to know how many {things} {he} <had/has> now. {he} <counted/counts> {x thing}.",
];

const AFTER_LOSS: [&str; 5] = [
    "so {he} <had/has> {x thing} left.",
    "{x thing} <stayed/stay> with {him}.",
    "now {N} <had/has> {r thing} left, because {x}.",
    "{x}, so {r} of them <were/are> left.",
    "{F} <wanted/wants> to know how many {things} <were/are> left. {he} <counted/counts> {x thing}.",
];

const ENDINGS: [&str; 5] = [
    "{N} <was/is> (happy|glad|tired).",
    "then {N} and {F} <went/go> home.",
    "{F} <was/is> glad too.",
    "in the end {N} <put/puts> the {things} into a {one_box}.",
    "that <was/is> a good day.",
];

/// A person gains and loses things.
pub(super) fn with_sums(draw: &mut Draw) -> String {
    let mut scene = new_scene(draw);
    let mut count = draw.between(3, 90);
    scene.number("a", count);
    let mut story = vec![scene.say_one(draw, &OPENINGS)];
    for _ in 0..2 + draw.below(3) {
        let gain = count < 4 || (count < 90 && draw.once_in(2));
        let change = if gain { draw.between(1, 100 - count) } else { draw.between(2, count - 2) };
        let (equation, events, results) = if gain {
            (Equation::add(count, change), GAINS, AFTER_GAIN)
        } else {
            (Equation::subtract(count, change), LOSSES, AFTER_LOSS)
        };
        count = equation.result;
        scene.number("b", change);
        scene.equation("x", equation);
        scene.number("r", count);
        story.push(scene.say_one(draw, &events));
        story.push(scene.say_one(draw, &results));
    }
    if draw.once_in(2) {
        story.push(scene.say_one(draw, &ENDINGS));
    }
    join(draw, &story)
}

const PEOPLE_FACTS: [&str; 13] = [
    "together {N} and {F} <had/have> {sum thing}.",
    "{N} <had/has> {big thing} and {F} <had/has> {small thing}. {N} <had/has> {gap more thing} than {F}.",
    "{F} <had/has> {small thing}, but {N} <had/has> {big}. that <was/is> {gap more thing}.",
    "{F} <had/has> {d fewer thing} than {N}, who <had/has> {big}. {F} <had/has> {less thing}.",
    "{N} <had/has> {d more thing} than {F}. {F} <had/has> {small thing}, so {N} <had/has> {sum thing}.",
    "{N} and {F} <put/put> {small thing} and {d thing} together. there <were/are> {sum thing}.",
    "{N} <had/has> {small thing}, {F} <had/has> {d}. together they <had/have> {sum thing}.",
    "{N}, {F} and {T} <had/have> {big thing} in all. {T} <had/has> {small}, so {N} and {F} <had/have> {gap}.",
    "{N} <needed/needs> {big thing} and <had/has> {small}, so {he} <needed/needs> {gap more thing}.",
    "{N} <wanted/wants> {big thing}. with {small thing} {he} <needed/needs> {gap more thing}.",
    "{N} <bought/buys> a (ball|book|toy|cup|pen|key) for {small} coins and a (ball|book|toy|cup|pen|key) for {d \
     coin}. {he} <paid/pays> {sum coin}.",
    "{N} <had/has> {big coin}. {he} <paid/pays> {small} for a (ball|book|toy|cup|pen|key), so {he} <had/has> {gap \
     coin} left.",
    "{N} <paid/pays> {big coin} for a (ball|book|toy|cup|pen|key). {F} <paid/pays> {small coin}, {gap coin} less.",
];

/// The things of two people, their sum and their difference.
pub(super) fn of_facts(draw: &mut Draw) -> String {
    let count = 3 + draw.below(3);
    story_of(draw, count, |draw| {
        let mut scene = new_scene(draw);
        let big = draw.between(3, 100);
        let small = draw.between(2, big - 1);
        let gap = Equation::subtract(big, small);
        scene.number("big", big);
        scene.number("small", small);
        scene.number("d", gap.result);
        scene.equation("gap", gap);
        scene.equation("less", Equation::subtract(big, gap.result));
        scene.equation("sum", Equation::add(small, gap.result));
        scene.say_one(draw, &PEOPLE_FACTS)
    })
}

const BOX_FACTS: [&str; 6] = [
    "{N} <filled/fills> {n box} with {k thing} in each {one_box}. {he} <used/uses> {x thing}.",
    "there <were/are> {n box} {place}. each {one_box} <held/holds> {k thing}, so all the {boxes} <held/hold> {x \
     thing}.",
    "{N} <had/has> {n box} with {k thing} in each. that <was/is> {x thing}.",
    "{F} <put/puts> {k thing} into each of {n box}. the {boxes} <held/hold> {x thing}.",
    "each {one_box} <held/holds> {k thing}. {N} <had/has> {n box}, which <made/makes> {r thing}, because {x}.",
    "{N} <made/makes> {n box} of {k thing}. {x}, so {he} <had/has> {r thing}.",
];

const BOX_GAINS: [&str; 3] = [
    "with {b more thing} {N} <had/has> {y thing}.",
    "{F} <brought/brings> {b more thing}. that <made/makes> {y thing}.",
    "{b} <were/are> added, so there <were/are> {y thing}.",
];

const BOX_LOSSES: [&str; 3] = [
    "without {b} of them {N} <had/has> {y thing}.",
    "{F} <took/takes> {b} of them. so {y thing} <stayed/stay>.",
    "{b} of them <went/go> to {T}, so there <were/are> {y thing} left.",
];

/// Equal groups of things, to which some are added or from which some are taken.
pub(super) fn of_boxes(draw: &mut Draw) -> String {
    let count = 2 + draw.below(3);
    story_of(draw, count, |draw| {
        let mut scene = new_scene(draw);
        let product = Equation::multiply(draw.between(2, 9), draw.between(2, 9));
        scene.number("n", product.left);
        scene.number("k", product.right);
        scene.number("r", product.result);
        scene.equation("x", product);
        let mut story = scene.say_one(draw, &BOX_FACTS);
        let total = product.result;
        let (change, patterns) = match draw.below(3) {
            0 => (Equation::add(total, draw.between(2, 100 - total)), BOX_GAINS),
            1 => (Equation::subtract(total, draw.between(2, total - 2)), BOX_LOSSES),
            _ => return story,
        };
        scene.number("b", change.right);
        scene.equation("y", change);
        story.push(' ');
        story.push_str(&scene.say_one(draw, &patterns));
        story
    })
}

/// A list of who has how many of what, then a part of it in other words. It teaches copying over a distance.
pub(super) fn of_lists(draw: &mut Draw) -> String {
    let scene = new_scene(draw);
    let rows: Vec<Scene> = (0..4 + draw.below(3))
        .map(|_| {
            let mut row = new_scene(draw);
            row.number("a", draw.between(2, 99));
            row
        })
        .collect();
    let mut recalled: Vec<usize> = (0..rows.len()).collect();
    draw.shuffle(&mut recalled);

    let list: Vec<String> = rows.iter().map(|row| row.say(draw, "{N} {a thing}")).collect();
    let mut text = vec![scene.say(draw, "{F} <wrote/writes> a list:") + " " + &list.join(", ") + "."];
    for &i in &recalled[..3] {
        text.push(rows[i].say(
            draw,
            "(the {a thing} <were/are> from {N}.|{N} <brought/brings> {a thing}.|from {N} <came/come> {a thing}.)",
        ));
    }
    text.join(" ")
}

/// Stories without a number, each a fixed order of events with many ways to tell them.
const PLOTS: [&[&str]; 6] = [
    &[
        "{time} {N} <lost/loses> a {colour} {one_thing} {place}.",
        "{he} <looked/looks> (under the table|behind the door|in every {one_box}|near the old tree), but it <was/is> \
         not there.",
        "(\"I need my {one_thing},\" {he} <said/says>.|{N} <felt/feels> sad.|{he} <did/does> not know the answer.)",
        "{F} <came/comes> to help {him}. (they <looked/look> {elsewhere} too.|they <asked/ask> {T}, who <had/has> no \
         answer.)",
        "(after some time|in the evening|then) {F} <saw/sees> the {colour} {one_thing} {elsewhere}.",
        "\"here it is,\" <said/says> {F}. {N} <was/is> (very happy|so glad|happy again).",
        "{he} <gave/gives> {F} (a cookie|a big apple|a flower) and they <went/go> home.",
    ],
    &[
        "{N} <had/has> a (small|big|young) {colour} {animal}.",
        "{time} the {animal} <ran/runs> away and <did/does> not come back.",
        "{N} and {F} <looked/look> for it {place} and {elsewhere}.",
        "(the day <was/is> long and they <were/are> tired.|it <was/is> cold, and the wind <was/is> strong.|they \
         <called/call> its name again and again.)",
        "{T} <saw/sees> the {animal} (near a tree|behind the house|by the road).",
        "it <was/is> (hungry|tired|sad), and {N} <gave/gives> it (some water|something to eat).",
        "then the {animal} <went/goes> home with {N}, and all of them <were/are> (glad|happy).",
    ],
    &[
        "{time} {F} <was/is> at home and <felt/feels> (sad|tired|ill).",
        "{N} <wanted/wants> to make {F} happy.",
        "so {he} <went/goes> out and <looked/looks> for (a {colour} flower|something good|a nice {one_thing}).",
        "{elsewhere} {he} <saw/sees> {T}, who <had/has> many {things}.",
        "\"{F} likes {things},\" <said/says> {N}. \"may I have one?\"",
        "{T} <gave/gives> {him} the best one, and it <was/is> {colour}.",
        "when {F} <saw/sees> it, {F} <was/is> (happy again|so glad). {N} <was/is> a good friend.",
    ],
    &[
        "the sun <was/is> (warm|bright), and {N} <went/goes> for a walk with {F}.",
        "they <saw/see> a {colour} {animal} {place}.",
        "(the {animal} <was/is> not afraid.|the {animal} <looked/looks> at them.|it <was/is> with its young.)",
        "then the sky <turned/turns> black and the rain <came/comes>.",
        "{N} and {F} <ran/run> to (an old house|a big tree|the school). (it <was/is> dry there.|there they \
         <waited/wait>.)",
        "{T} <was/is> there too and <had/has> an answer to (all|many) of their questions.",
        "after the rain all of them <went/go> home.",
    ],
    &[
        "{N} <made/makes> a {one_box} for {his} {things}.",
        "it <was/is> {colour}, and {F} <liked/likes> it very much.",
        "\"can you make one for me?\" <asked/asks> {F}.",
        "\"yes,\" <said/says> {N}, \"but I need (some wood|more time|your help).\"",
        "so they <worked/work> {place} (all day|in the morning|every evening).",
        "{T} <came/comes> to look. (\"it is good,\" <said/says> {T}.|{T} <was/is> glad to see them.)",
        "now {F} <had/has> a {one_box} too, and {N} <was/is> proud of it.",
    ],
    &[
        "{N}, {F} and {T} <were/are> friends. they <played/play> {place} every {day}.",
        "{N} always <had/has> a {colour} {one_thing} with {him}.",
        "{F} <liked/likes> {things} less than games, and {T} <liked/likes> (songs|stories) best.",
        "{time} {T} <did/does> not come.",
        "\"where is {T}?\" <asked/asks> {F}. ({N} <had/has> no answer.|\"maybe {elsewhere},\" <said/says> {N}.)",
        "they <found/find> {T} {elsewhere} with a (small|young|tired) {animal}.",
        "so on that {day} they <stayed/stay> there, and {N} <gave/gives> {T} the {colour} {one_thing}.",
    ],
];

/// A story without a number.
pub(super) fn plain(draw: &mut Draw) -> String {
    let scene = new_scene(draw);
    let plot = draw.one_of(&PLOTS);
    let sentences: Vec<String> = plot.iter().map(|pattern| scene.say(draw, pattern)).collect();
    sentences.join(" ")
}

/// A scene of [`Scene::draw`], with the words that only the corpus uses.
fn new_scene(draw: &mut Draw) -> Scene {
    let present = draw.once_in(2);
    let mut scene = Scene::draw(draw, present);
    scene.text("animal", draw.some_of::<_, 1>(&ANIMALS)[0].one);
    scene.text("colour", draw.one_of(&COLOURS));
    scene.text("time", draw.one_of(&TIMES));
    scene.text("day", draw.one_of(&DAYS));
    scene
}

fn story_of(draw: &mut Draw, count: usize, mut sentence: impl FnMut(&mut Draw) -> String) -> String {
    let sentences: Vec<String> = (0..count).map(|_| sentence(draw)).collect();
    join(draw, &sentences)
}

/// Joins sentences into one text, or into one line for each. Words that open a sentence then also occur at the start of a
/// line.
fn join(draw: &mut Draw, sentences: &[String]) -> String {
    sentences.join(draw.one_of(&[" ", "\n"]))
}
