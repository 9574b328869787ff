//! Random numbers that are the same everywhere and for ever: splitmix64.

pub struct Rng(u64);

impl Rng {
    /// A stream for each number.
    pub fn new(seed: u64) -> Rng {
        let mut rng = Rng(seed);
        rng.next(); // small numbers are near each other
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// The logarithm is uniform.
    pub fn between_log(&mut self, low: f32, high: f32) -> f32 {
        self.between(low.ln(), high.ln()).exp()
    }

    pub fn below(&mut self, count: usize) -> usize {
        (self.unit() * count as f32) as usize
    }

    pub fn chance(&mut self, part: f32) -> bool {
        self.unit() < part
    }

    /// Mean 0, deviation 1: the sum of three uniform numbers, from one draw.
    pub fn noise(&mut self) -> f32 {
        let bits = self.next();
        let part = |shift: u32| (bits >> shift & 0x1f_ffff) as f32;
        (part(0) + part(21) + part(42)) * (2.0 / 0x1f_ffff as f32) - 3.0
    }

    /// Mean 0, deviation 1, Gauss'.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.unit()).cos()
    }
}
