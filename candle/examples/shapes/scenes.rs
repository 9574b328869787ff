//! Made scenes: an image and the truth about it, from a number alone.
//!
//! Two to six objects on a textured ground, later ones in front of earlier ones; half of them with an edge that is
//! several bins soft, half with a shadow. The truth is the whole box of an object, also where it is covered.
//!
//! With alternatives a tenth of the objects has a handle, [`HANDLE`] pixels long; and in a fifth of the scenes one object
//! may or may not have one, just where another object hides it. Nothing in the image tells which: of such a side two
//! places are true, [`Side::Alternative`].

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::rng::Rng;
pub use super::shape::{CLASS_NAMES, CLASSES};
use super::shape::{ELLIPSE, Handle, RECTANGLE, SHARP, Shadow, Shape, Wave, axis, sign};

/// Pixels of a side of a scene.
pub const SIZE: usize = 64;
/// With alternatives: scenes with a handle that may be there, and other objects that have one.
const PAIRS: f32 = 0.2;
const HANDLES: f32 = 0.1;
/// How far a handle sticks out, pixels.
pub const HANDLE: f32 = 14.0;
/// Objects of which less is seen are no truth.
const LEAST_SEEN: f32 = 0.35;
/// How much of the smaller of two boxes may be in the other.
const OVERLAP: f32 = 0.45;
/// Pixels inside of a side that say whether it is seen.
const BAND: f32 = 3.0;
const NOISE: f32 = 0.08;

pub struct Scene {
    /// `[SIZE, SIZE, 3]`, about -1 to 1.
    pub pixels: Vec<f32>,
    pub objects: Vec<Object>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    pub class: usize,
    /// `[x1, y1, x2, y2]` in pixels, in the image.
    pub corners: [f32; 4],
    /// Left, top, right, bottom.
    pub sides: [Side; 4],
}

/// What the image says of a side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Clear,
    /// A soft edge, or a shadow.
    Soft,
    /// Another object is in front.
    Hidden,
    /// Hidden, and it might as well be here.
    Alternative(f32),
}

/// Which scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenes {
    /// Objects as they are.
    Plain,
    /// Some of which might be otherwise; and edges up to 6 pixels soft, not 5.
    Alternatives,
}

impl Scenes {
    /// The scene of a number.
    pub fn scene(self, number: u64) -> Scene {
        self.scene_with(number, None)
    }

    /// The same, with or without the handle that is hidden.
    pub fn scene_with(self, number: u64, has_handle: Option<bool>) -> Scene {
        let rng = &mut Rng::new(number);
        let ground = Ground::new(rng);
        let (mut shapes, mut room) = (Vec::new(), Vec::new());
        let mut alternative = None;
        let wanted = 2 + rng.below(5);
        if rng.chance(PAIRS) && self == Scenes::Alternatives {
            let (body, cover) = pair(rng, ground.colour);
            let drawn = rng.chance(0.5);
            room.extend([body.corners(), cover.corners()]);
            alternative = body.handle.map(|handle| (0, handle, has_handle.unwrap_or(drawn)));
            shapes.extend([body, cover]);
        }
        for _ in 0..20 * wanted {
            if shapes.len() >= wanted {
                break;
            }
            let shape = self.ordinary(rng, ground.colour);
            if room.iter().all(|&other| shared(shape.corners(), other) <= OVERLAP) {
                room.push(shape.corners());
                shapes.push(shape);
            }
        }
        if let Some((index, handle, drawn)) = alternative {
            shapes[index].handle = drawn.then_some(handle);
        }
        let mut canvas = Canvas::new(&ground);
        for (number, shape) in shapes.iter().enumerate() {
            canvas.draw(shape, number);
        }
        let mut objects = Vec::new();
        for (number, shape) in shapes.iter().enumerate() {
            let alternative = alternative.filter(|&(index, ..)| index == number);
            objects.extend(canvas.truth(
                shape,
                number,
                alternative.map(|(_, handle, drawn)| (handle, drawn)),
            ));
        }
        for value in &mut canvas.pixels {
            *value += NOISE * rng.noise();
        }
        Scene { pixels: canvas.pixels, objects }
    }

    fn ordinary(self, rng: &mut Rng, ground: [f32; 3]) -> Shape {
        let has_alternatives = self == Scenes::Alternatives;
        let (size, aspect) = (rng.between_log(5.0, 22.0), rng.between_log(0.65, 1.5).sqrt());
        let half = [size * aspect, size / aspect];
        // Up to a fifth of it is outside.
        let centre = half.map(|half| rng.between(0.6 * half, SIZE as f32 - 0.6 * half));
        let soft = rng.chance(0.5).then(|| rng.between(1.5, if has_alternatives { 6.0 } else { 5.0 }));
        let shadow = rng.chance(0.5).then(|| Shadow {
            offset: [(); 2].map(|()| rng.between(-5.0, 5.0)),
            strength: rng.between(0.3, 0.7),
            softness: rng.between(2.0, 6.0),
        });
        let handle = (rng.chance(HANDLES) && has_alternatives).then(|| {
            let side = rng.below(4);
            Handle { side, length: HANDLE, half_breadth: rng.between(0.25, 0.4) * half[1 - axis(side)] }
        });
        Shape {
            class: rng.below(CLASSES),
            centre,
            half,
            handle,
            colour: colour(rng, &[ground]),
            stripes: stripes(rng),
            softness: soft.map_or(SHARP, |soft| soft.min(0.8 * half[0].min(half[1]))),
            shadow,
        }
    }
}

struct Ground {
    colour: [f32; 3],
    waves: [Wave; 3],
}

impl Ground {
    fn new(rng: &mut Rng) -> Ground {
        let colour = [(); 3].map(|()| rng.between(-0.8, 0.8));
        Ground { colour, waves: [(); 3].map(|()| Wave::new(rng, [40.0, 8.0], [0.02, 0.1])) }
    }
}

/// A colour that can be told from others.
fn colour(rng: &mut Rng, others: &[[f32; 3]]) -> [f32; 3] {
    loop {
        let colour = [(); 3].map(|()| rng.between(-1.0, 1.0));
        let far = |other: &[f32; 3]| (0..3).map(|i| (colour[i] - other[i]).powi(2)).sum::<f32>() > 0.8;
        if others.iter().all(far) {
            return colour;
        }
    }
}

fn stripes(rng: &mut Rng) -> Wave {
    Wave::new(rng, [12.0, 4.0], [0.0, 0.15])
}

/// A body with a handle, and what hides all of the handle and the place where it begins.
fn pair(rng: &mut Rng, ground: [f32; 3]) -> (Shape, Shape) {
    let half = [(); 2].map(|()| rng.between(6.0, 11.0));
    let handle = Handle { side: rng.below(4), length: HANDLE, half_breadth: rng.between(2.5, 3.5) };
    let body = Shape {
        class: rng.below(CLASSES),
        centre: [0.0; 2],
        half,
        handle: Some(handle),
        colour: colour(rng, &[ground]),
        stripes: stripes(rng),
        softness: SHARP,
        shadow: None,
    };
    // All of it is in the image, or the truth would be cut.
    let corners = body.corners();
    let centre = [0, 1].map(|i| rng.between(1.0 - corners[i], SIZE as f32 - 1.0 - corners[i + 2]));
    let body = Shape { centre, ..body };

    let (along, outward) = (axis(handle.side), sign(handle.side));
    let first = body.reach(handle.side, handle.half_breadth + SHARP) - 1.5;
    let last = half[along] + HANDLE + 1.5 + rng.between(0.0, 3.0);
    let (mut middle, mut cover) = (body.centre, [0.0; 2]);
    middle[along] += outward * (first + last) / 2.0;
    cover[along] = (last - first) / 2.0;
    cover[1 - along] = handle.half_breadth + 1.5 + rng.between(0.0, 3.0);
    let class = if rng.chance(0.5) { RECTANGLE } else { ELLIPSE };
    if class == ELLIPSE {
        cover = cover.map(|half| half * 1.45); // around that rectangle
    }
    let front = Shape {
        class,
        centre: middle,
        half: cover,
        handle: None,
        colour: colour(rng, &[ground, body.colour]),
        stripes: stripes(rng),
        softness: SHARP,
        shadow: None,
    };
    (body, front)
}

fn area(b: [f32; 4]) -> f32 {
    (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0)
}

/// The part of the smaller box that two boxes share.
fn shared(a: [f32; 4], b: [f32; 4]) -> f32 {
    let both = [a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])];
    area(both) / area(a).min(area(b))
}

struct Canvas {
    pixels: Vec<f32>,
    /// Which shape is in front.
    front: Vec<usize>,
    /// Of each shape, which pixels are its own.
    places: Vec<Vec<usize>>,
}

/// The middle of a pixel.
fn middle(place: usize) -> [f32; 2] {
    [(place % SIZE) as f32 + 0.5, (place / SIZE) as f32 + 0.5]
}

impl Canvas {
    fn new(ground: &Ground) -> Canvas {
        let mut pixels = Vec::with_capacity(3 * SIZE * SIZE);
        for place in 0..SIZE * SIZE {
            let [x, y] = middle(place);
            let wave: [f32; 3] = [0, 1, 2].map(|i| ground.waves[i].at(x, y));
            let all = wave[0] + wave[1] + wave[2];
            // Mostly brightness, and a little of each colour.
            pixels.extend([0, 1, 2].map(|i| ground.colour[i] + 0.7 * all + 0.3 * wave[i]));
        }
        Canvas { pixels, front: vec![usize::MAX; SIZE * SIZE], places: Vec::new() }
    }

    fn draw(&mut self, shape: &Shape, number: usize) {
        let margin = shape.softness.max(shape.shadow.map_or(0.0, |shadow| shadow.softness + 5.0));
        let corners = shape.corners();
        let clamp = |at: f32| at.clamp(0.0, SIZE as f32) as usize;
        let [columns, rows] =
            [0, 1].map(|i| clamp(corners[i] - margin)..clamp(corners[i + 2] + margin + 1.0));
        let mut places = Vec::new();
        for place in rows.flat_map(|row| columns.clone().map(move |column| row * SIZE + column)) {
            let [x, y] = middle(place);
            let pixel = &mut self.pixels[3 * place..][..3];
            if let Some(shadow) = &shape.shadow {
                let shade = shape.shade(shadow, x, y);
                pixel.iter_mut().for_each(|value| *value -= shade * (*value + 1.0));
            }
            let cover = shape.cover(x, y);
            if cover == 0.0 {
                continue;
            }
            let stripe = shape.stripes.at(x, y);
            for (value, colour) in pixel.iter_mut().zip(shape.colour) {
                *value = cover * (colour + stripe) + (1.0 - cover) * *value; // of a cover of 1 nothing is left
            }
            if cover > 0.5 {
                places.push(place);
                self.front[place] = number;
            }
        }
        self.places.push(places);
    }

    /// What is to be found of a shape, once all are drawn.
    fn truth(&self, shape: &Shape, number: usize, alternative: Option<(Handle, bool)>) -> Option<Object> {
        let whole = shape.corners();
        let seen = |from: &dyn Fn([f32; 2]) -> bool| {
            let of = self.places[number].iter().filter(|&&place| from(middle(place)));
            let (all, seen) = of.fold((0, 0), |(all, seen), &place| {
                (all + 1, seen + usize::from(self.front[place] == number))
            });
            (all > 0).then(|| seen as f32 / all as f32)
        };
        seen(&|_| true).filter(|&seen| seen >= LEAST_SEEN)?;
        let corners = whole.map(|at| at.clamp(0.0, SIZE as f32));
        let side = |side: usize| {
            if let Some((handle, drawn)) = alternative.filter(|(handle, _)| handle.side == side) {
                let step = sign(side) * handle.length;
                return Side::Alternative(corners[side] + if drawn { -step } else { step });
            }
            let (at, inward) = (corners[side], -sign(side));
            let in_band = |point: [f32; 2]| (0.0..BAND).contains(&((point[axis(side)] - at) * inward));
            if seen(&in_band).is_none_or(|seen| seen < 0.5) {
                Side::Hidden
            } else if at != whole[side] || (shape.softness <= SHARP && shape.shadow.is_none()) {
                Side::Clear // also where the image ends
            } else {
                Side::Soft
            }
        };
        Some(Object { class: shape.class, corners, sides: [0, 1, 2, 3].map(side) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_repeat_and_differ() {
        for scenes in [Scenes::Plain, Scenes::Alternatives] {
            let [a, b, c] = [7, 7, 8].map(|number| scenes.scene(number));
            assert_eq!((&a.pixels, &a.objects), (&b.pixels, &b.objects));
            assert_ne!(a.pixels, c.pixels);
        }
        // The generator, and all that is drawn from it, on every machine.
        assert_eq!(Rng::new(1).next(), 0xbeeb_8da1_658e_ec67);
    }

    #[test]
    fn boxes_are_in_the_image_and_pixels_in_their_range() {
        for number in 0..400 {
            let scenes = [Scenes::Plain, Scenes::Alternatives][number as usize % 2];
            let Scene { pixels, objects } = scenes.scene(number);
            assert_eq!(pixels.len(), 3 * SIZE * SIZE);
            assert!(pixels.iter().all(|value| value.abs() < 2.5), "scene {number}");
            assert!((1..=6).contains(&objects.len()), "scene {number} has {} objects", objects.len());
            for Object { class, corners: [x1, y1, x2, y2], sides } in objects {
                let is_open = |side: &Side| matches!(side, Side::Alternative(_));
                assert!(scenes == Scenes::Alternatives || !sides.iter().any(is_open), "scene {number}");
                assert!(class < CLASSES);
                assert!(0.0 <= x1 && x1 + 2.0 < x2 && x2 <= SIZE as f32, "scene {number}: {x1} to {x2}");
                assert!(0.0 <= y1 && y1 + 2.0 < y2 && y2 <= SIZE as f32, "scene {number}: {y1} to {y2}");
            }
        }
    }

    /// What makes the alternatives real: with and without the handle the image is the same to the bit.
    #[test]
    fn nothing_tells_whether_there_is_a_hidden_handle() {
        let (mut pairs, mut apart) = (0, 0);
        for number in 0..200 {
            let [with, without] = [true, false].map(|has| Scenes::Alternatives.scene_with(number, Some(has)));
            assert!(with.pixels == without.pixels, "scene {number} shows it");
            for (a, b) in with.objects.iter().zip(&without.objects) {
                for side in 0..4 {
                    if let (Side::Alternative(here), Side::Alternative(there)) =
                        (a.sides[side], b.sides[side])
                    {
                        pairs += 1;
                        let near = |a: f32, b: f32| (a - b).abs() < 1e-4;
                        assert!(
                            near(here, b.corners[side]) && near(there, a.corners[side]),
                            "scene {number}"
                        );
                        apart += usize::from(near((here - there).abs(), HANDLE));
                    }
                }
            }
        }
        assert!(pairs > 20, "{pairs} pairs");
        assert!(apart * 10 > pairs * 9, "{apart} of {pairs} are {HANDLE} pixels apart");
    }
}
