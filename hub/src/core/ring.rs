//! Every report of the last hour, small: there is one ring for each node of a fleet. A row is written as what differs
//! from the row before it, so it can only be read from the beginning of its chunk.

use super::history::{Point, RAW_MS, Row};
use std::collections::VecDeque;

/// Time of a chunk, in milliseconds: what is forgotten at once.
const CHUNK_MS: u64 = RAW_MS / 6;
/// Bytes of a chunk, and of all before the newest, at most, whatever a board sends. An hour of a Jetson's reports takes
/// 5 kB when they come every 60 s; of those that come every 10 s it may be less than an hour.
const CHUNK_MAX: usize = 3 * 1024;
const BYTES_MAX: usize = 16 * 1024;

/// The rows.
#[derive(Debug, Default)]
pub struct Ring {
    chunks: VecDeque<Chunk>,
    // Mean and maximum of each series in the newest row, by its place.
    newest: Vec<Option<(i64, i64)>>,
}

#[derive(Debug)]
struct Chunk {
    first: u64,
    last: u64,
    bytes: Vec<u8>,
}

impl Ring {
    /// Adds a row; those that are too old go.
    pub fn push(&mut self, row: &Row) {
        let fits = |chunk: &&mut Chunk| {
            row.at_ms >= chunk.last && row.at_ms - chunk.first < CHUNK_MS && chunk.bytes.len() < CHUNK_MAX
        };
        if self.chunks.back_mut().filter(fits).is_none() {
            if let Some(full) = self.chunks.back_mut() {
                full.bytes.shrink_to_fit();
            }
            self.newest.clear();
            self.chunks.push_back(Chunk { first: row.at_ms, last: row.at_ms, bytes: Vec::new() });
        }
        let is_old = |chunk: &Chunk| chunk.last.saturating_add(RAW_MS) < row.at_ms;
        while self.chunks.len() > 1 && (self.bytes() > BYTES_MAX || self.chunks.front().is_some_and(is_old)) {
            self.chunks.pop_front();
        }
        let Some(chunk) = self.chunks.back_mut() else { return };
        let series = row.points.iter().map(|point| usize::from(point.series) + 1).max().unwrap_or(0);
        let mut now = vec![None; self.newest.len().max(series)];
        for point in &row.points {
            now[usize::from(point.series)] = Some((point.mean, point.max));
        }
        self.newest.resize(now.len(), None);
        put(&mut chunk.bytes, row.at_ms - chunk.last);
        chunk.last = row.at_ms;
        // Which series are otherwise, seven in a byte; the eighth bit says that more follow.
        let changed: Vec<bool> = now.iter().zip(&self.newest).map(|(now, before)| now != before).collect();
        let some = changed.iter().rposition(|changed| *changed).map_or(0, |last| last + 1);
        let sevens = changed[..some].chunks(7);
        let last = sevens.len().max(1) - 1;
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        chunk.bytes.extend(sevens.enumerate().map(|(n, bits)| byte(bits) | if n < last { 0x80 } else { 0 }));
        if some == 0 {
            chunk.bytes.push(0);
        }
        for ((now, before), _) in now.iter().zip(&self.newest).zip(changed).filter(|(_, changed)| *changed) {
            let (mean, max) = before.unwrap_or_default();
            let over = max.wrapping_sub(mean);
            match now {
                None => put(&mut chunk.bytes, 0),
                Some((now, now_max)) => {
                    // 0 is what is gone.
                    let mean = zigzag(now.wrapping_sub(mean));
                    put(&mut chunk.bytes, mean.saturating_add(1));
                    put(&mut chunk.bytes, zigzag(now_max.wrapping_sub(*now).wrapping_sub(over)));
                }
            }
        }
        self.newest = now;
    }

    /// All of them, oldest first.
    pub fn rows(&self) -> Vec<Row> {
        self.chunks.iter().flat_map(Chunk::rows).collect()
    }

    fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum()
    }
}

impl Chunk {
    fn rows(&self) -> Vec<Row> {
        let (mut rows, mut at_ms, mut left) = (Vec::new(), self.first, self.bytes.as_slice());
        let mut known: Vec<Option<(i64, i64)>> = Vec::new();
        while let Some(after) = take(&mut left) {
            at_ms += after;
            let mut changed = Vec::new();
            while let Some((byte, rest)) = left.split_first() {
                left = rest;
                changed.extend((0..7).map(|bit| byte >> bit & 1 == 1));
                if byte & 0x80 == 0 {
                    break;
                }
            }
            known.resize(known.len().max(changed.len()), None);
            for (value, _) in known.iter_mut().zip(changed).filter(|(_, changed)| *changed) {
                let (mean, max) = value.unwrap_or_default();
                let over = max.wrapping_sub(mean);
                *value = take(&mut left).and_then(|n| n.checked_sub(1)).map(|step| {
                    let mean = mean.wrapping_add(unzigzag(step));
                    (mean, mean.wrapping_add(over.wrapping_add(unzigzag(take(&mut left).unwrap_or(0)))))
                });
            }
            let points = (0..).zip(&known).filter_map(|(series, value)| {
                let (mean, max) = (*value)?;
                Some(Point { series, mean, max })
            });
            rows.push(Row { at_ms, points: points.collect() });
        }
        rows
    }
}

/// LEB128.
fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The sign last, so that small numbers are short.
fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at_ms: u64, values: &[Option<(i64, i64)>]) -> Row {
        let points = (0..).zip(values).filter_map(|(series, value)| {
            let (mean, max) = (*value)?;
            Some(Point { series, mean, max })
        });
        Row { at_ms, points: points.collect() }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let rows = [
            row(5, &[Some((1, 2)), None, Some((-7, -7))]),
            row(5, &[Some((1, 2)), None, Some((-7, -7))]),
            row(9, &[None, Some((1 << 60, i64::MAX)), Some((-(1 << 61), 0)), Some((3, 3))]),
            row(10, &[Some((1, 1)), None, None, None, None, None, None, Some((7, 7)), None, Some((9, 9))]),
            row(11, &[Some((1, 1)), None, None, None, None, None, None, Some((7, 8)), None, Some((9, 9))]),
            row(900_000, &[Some((5, 6))]),
            row(899_999, &[Some((5, 6)), Some((0, 0))]),
            row(900_001, &[]),
        ];
        let mut ring = Ring::default();
        rows.iter().for_each(|row| ring.push(row));
        assert_eq!(ring.rows(), rows);
    }

    #[test]
    fn it_forgets_what_is_older_than_an_hour_and_is_bounded_in_bytes() {
        let mut ring = Ring::default();
        for n in 0..2_000 {
            ring.push(&row(n * 10_000, &[Some((n as i64, n as i64))]));
        }
        let rows = ring.rows();
        let newest = 1_999 * 10_000;
        assert!(rows[0].at_ms + RAW_MS <= newest && rows[0].at_ms + RAW_MS + CHUNK_MS >= newest);
        for n in 0..200_000u64 {
            let noise = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as i64;
            ring.push(&row(newest + n, &[Some((noise, noise)); 20]));
        }
        assert!(ring.bytes() <= BYTES_MAX + 2 * CHUNK_MAX, "{}", ring.bytes());
        assert!(ring.rows().len() > 50, "{}", ring.rows().len());
    }
}
