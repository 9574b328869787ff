//! One shape of a scene: where it is, and how its pixels look.

use super::rng::Rng;

/// Ellipse, rectangle, rhombus, cross.
pub const CLASSES: usize = 4;
pub const CLASS_NAMES: [&str; CLASSES] = ["ellipse", "rectangle", "rhombus", "cross"];
/// Which of them can cover something whole.
pub const ELLIPSE: usize = 0;
pub const RECTANGLE: usize = 1;

/// How broad the arms of a cross are, of its size.
const ARM: f32 = 0.36;
/// Width of the ramp of a sharp edge, pixels.
pub const SHARP: f32 = 0.7;

/// A bar of the same colour that sticks out of one side.
#[derive(Clone, Copy)]
pub struct Handle {
    /// 0 to 3: left, top, right, bottom.
    pub side: usize,
    /// From the side of the body on, pixels.
    pub length: f32,
    pub half_breadth: f32,
}

#[derive(Clone, Copy)]
pub struct Shadow {
    pub offset: [f32; 2],
    /// What it takes away, from 0 to 1.
    pub strength: f32,
    /// Width of its ramp, pixels.
    pub softness: f32,
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub class: usize,
    pub centre: [f32; 2],
    /// Half the size of the body.
    pub half: [f32; 2],
    pub handle: Option<Handle>,
    pub colour: [f32; 3],
    pub stripes: Wave,
    /// Width of the ramp of its edge, pixels.
    pub softness: f32,
    pub shadow: Option<Shadow>,
}

/// A plane wave of one number.
#[derive(Clone, Copy)]
pub struct Wave {
    direction: [f32; 2],
    phase: f32,
    strength: f32,
}

impl Wave {
    pub fn new(rng: &mut Rng, [longest, shortest]: [f32; 2], strength: [f32; 2]) -> Wave {
        let angle = rng.between(0.0, std::f32::consts::TAU);
        let number = std::f32::consts::TAU / rng.between(shortest, longest);
        Wave {
            direction: [number * angle.cos(), number * angle.sin()],
            phase: rng.between(0.0, std::f32::consts::TAU),
            strength: rng.between(strength[0], strength[1]),
        }
    }

    pub fn at(&self, x: f32, y: f32) -> f32 {
        self.strength * (self.direction[0] * x + self.direction[1] * y + self.phase).sin()
    }
}

/// x is 0, y is 1.
pub fn axis(side: usize) -> usize {
    side % 2
}

/// Left and top are towards lower coordinates.
pub fn sign(side: usize) -> f32 {
    if side < 2 { -1.0 } else { 1.0 }
}

impl Shape {
    /// `[x1, y1, x2, y2]` of all of it.
    pub fn corners(&self) -> [f32; 4] {
        let ([x, y], [a, b]) = (self.centre, self.half);
        let mut corners = [x - a, y - b, x + a, y + b];
        if let Some(Handle { side, length, .. }) = self.handle {
            corners[side] += sign(side) * length;
        }
        corners
    }

    /// How far along a side's direction the body is at least so broad.
    pub fn reach(&self, side: usize, half_breadth: f32) -> f32 {
        let (along, across) = (self.half[axis(side)], self.half[1 - axis(side)]);
        let part = (half_breadth / across).min(1.0);
        match self.class {
            ELLIPSE => along * (1.0 - part * part).sqrt(),
            RECTANGLE => along,
            2 => along * (1.0 - part),
            _ if part <= ARM => along,
            _ => along * ARM,
        }
    }

    /// How far a point, relative to the centre, is outside of the outline, pixels; below 0 inside.
    pub fn distance(&self, [x, y]: [f32; 2]) -> f32 {
        let [a, b] = self.half;
        let within = |a: f32, b: f32| (x.abs() - a).max(y.abs() - b);
        let body = match self.class {
            ELLIPSE => {
                let radius = ((x / a).powi(2) + (y / b).powi(2)).sqrt();
                let slope = ((x / (a * a)).powi(2) + (y / (b * b)).powi(2)).sqrt() / radius.max(1e-6);
                (radius - 1.0) / slope.max(1e-3)
            }
            RECTANGLE => within(a, b),
            2 => (x.abs() / a + y.abs() / b - 1.0) / (1.0 / (a * a) + 1.0 / (b * b)).sqrt(),
            _ => within(a, b * ARM).min(within(a * ARM, b)),
        };
        let Some(Handle { side, length, half_breadth }) = self.handle else { return body };
        let along = [x, y][axis(side)] * sign(side);
        let across = [x, y][1 - axis(side)].abs();
        let end = self.half[axis(side)] + length;
        body.min((along - end).max(-along).max(across - half_breadth))
    }

    /// How much of a pixel it covers.
    pub fn cover(&self, x: f32, y: f32) -> f32 {
        ramp(self.distance([x - self.centre[0], y - self.centre[1]]), self.softness)
    }

    pub fn shade(&self, shadow: &Shadow, x: f32, y: f32) -> f32 {
        let at = [x - self.centre[0] - shadow.offset[0], y - self.centre[1] - shadow.offset[1]];
        shadow.strength * ramp(self.distance(at), shadow.softness)
    }
}

/// From 1 inside to 0 outside, smoothly over so many pixels around the outline.
fn ramp(distance: f32, width: f32) -> f32 {
    let t = (0.5 - distance / width).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}
