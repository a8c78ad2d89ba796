//! Data to sort, made from a seed. Kinds that sorts get wrong: equal, skewed, reversed, empty,
//! binary, numeric look-alikes.

/// A small random generator (SplitMix64): the same seed gives the same data for ever.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A generator of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// One of some things.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Length of the records that [`records`] makes.
pub const RECORD: usize = 100;

/// How the 10-byte keys of fixed-length records lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// All different, in no order.
    Random,
    /// Ascending.
    Sorted,
    /// Descending.
    Reversed,
    /// One key.
    Equal,
    /// Nine in ten share one key, most others a few.
    Skewed,
}

/// `count` records of [`RECORD`] bytes: a key of 10, then bytes by which each record differs from
/// all others, line ends and zeros among them.
pub fn records(count: usize, keys: Keys, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = Vec::with_capacity(count * RECORD);
    for index in 0..count as u64 {
        let key = match keys {
            Keys::Random => dice.bits(),
            Keys::Sorted => index,
            Keys::Reversed => u64::MAX - index,
            Keys::Equal => 7,
            Keys::Skewed => match dice.below(100) {
                0..90 => 1 << 40,
                90..98 => dice.below(5) << 32,
                _ => dice.bits(),
            },
        };
        bytes.extend_from_slice(&key.to_be_bytes());
        bytes.extend_from_slice(if keys == Keys::Random { &[b'\n', 0] } else { &[0, 0] });
        bytes.extend_from_slice(&index.to_le_bytes());
        while !bytes.len().is_multiple_of(RECORD) {
            bytes.push((dice.0 >> 56) as u8 ^ bytes.len() as u8);
        }
    }
    bytes
}

/// Log-like lines of about 100 bytes: many equal keys (host, status, path), one host in six of ten
/// lines, numbers of different widths.
pub fn log_lines(count: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut text = String::new();
    for _ in 0..count {
        let hot = dice.below(10) < 6;
        let host = if hot { 17 } else { dice.below(400) };
        let method = dice.pick(&["GET", "GET", "GET", "POST", "DELETE"]);
        let path = dice.pick(&[
            "/",
            "/index.html",
            "/api/v1/items",
            "/api/v1/items/42",
            "/static/app.js",
            "/login",
        ]);
        let status = dice.pick(&["200", "200", "200", "304", "404", "500"]);
        let (second, size, took) = (dice.below(86_400), dice.below(100_000), dice.below(5_000));
        text.push_str(&format!(
            "2026-01-02T{:02}:{:02}:{:02}Z host-{host} {method} {path} {status} {size} 0.{took:04} \
                agent/{}\n",
            second / 3600,
            second / 60 % 60,
            second % 60,
            dice.below(7)
        ));
    }
    text.into_bytes()
}

/// Short words, each several times, in no order, some a beginning of another.
pub fn words(count: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let syllables = ["ba", "ne", "to", "ri", "lum", "s", "Ka", "e", "'", "-"];
    let mut text = String::new();
    for _ in 0..count {
        for _ in 0..dice.below(5) {
            text.push_str(dice.pick(&syllables));
        }
        text.push('\n');
    }
    text.into_bytes()
}

/// Lines that parsers stumble over: empty, NUL bytes, invalid UTF-8, carriage returns, blanks at
/// both ends, some long; no newline at the end.
pub fn odd_lines(count: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let odd: [&[u8]; 12] = [
        b"",
        b" ",
        b"\0",
        b"\0a",
        b"a\0",
        b"\xff\xfe",
        b"\xc3\xa4",
        b"\xc3",
        b"a\r",
        b"\ta",
        b"a ",
        b"~~~~~~~~~~~~~~~~~~~~~~",
    ];
    let mut bytes = Vec::new();
    for index in 0..count {
        bytes.extend_from_slice(dice.pick(&odd));
        if index % 997 == 5 {
            let long = bytes.len() + 40_000 + dice.below(200_000) as usize;
            bytes.resize(long, b'a' + (index % 26) as u8);
        }
        if dice.below(3) == 0 {
            bytes.extend_from_slice(dice.below(1000).to_string().as_bytes());
        }
        if index + 1 < count {
            bytes.push(b'\n');
        }
    }
    bytes
}

/// Lines of three fields, `number<separator>word<separator>number`, with numbers in all the
/// spellings that `-n` knows and some that it does not.
pub fn table(count: usize, separator: char, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let spellings = [
        "0", "-0", "00", "", " ", "-", "+1", "1", "01", " 1", "1.0", "1.5", ".5", "-.5", "-1",
        "-1.25", "1e3", "x", "12abc", "--1", "9", "10",
    ];
    let names = ["ann", "bob", "Bob", "bo", "", "carla", "dora the second", "ann "];
    let mut text = String::new();
    for _ in 0..count {
        let first = if dice.below(3) == 0 {
            dice.pick(&spellings).to_owned()
        } else {
            format!("{}{}", dice.pick(&["", "", "-"]), dice.below(300))
        };
        let name = dice.pick(&names);
        text.push_str(&format!("{first}{separator}{name}{separator}{}\n", dice.below(20)));
    }
    text.into_bytes()
}

/// The same lines for `-z`: newlines and NUL bytes in each other's place.
pub fn for_nul_terminators(mut lines: Vec<u8>) -> Vec<u8> {
    for byte in &mut lines {
        *byte = match *byte {
            b'\n' => 0,
            0 => b'\n',
            other => other,
        };
    }
    lines
}
