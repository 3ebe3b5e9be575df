//! Every report of the last hour, small: there is one ring for each node of a fleet. A row is written as what differs
//! from the row before it, so it can only be read from the beginning of its chunk.

use super::history::{Point, RAW_MS, Row};
use std::collections::VecDeque;

/// Time of a chunk, in milliseconds: what is forgotten at once.
const CHUNK_MS: u64 = RAW_MS / 6;
/// Bytes of a chunk, and chunks, at most, whatever a board sends.
const CHUNK_MAX: usize = 16 * 1024;
const CHUNKS_MAX: usize = 8;

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
        while self.chunks.len() > CHUNKS_MAX
            || self.chunks.front().is_some_and(|chunk| chunk.last.saturating_add(RAW_MS) < row.at_ms)
        {
            self.chunks.pop_front();
        }
        let Some(chunk) = self.chunks.back_mut() else { return };
        let mut now = vec![None; self.newest.len()];
        for point in &row.points {
            let at = usize::from(point.series);
            now.resize(now.len().max(at + 1), None);
            now[at] = Some((point.mean, point.max));
        }
        self.newest.resize(now.len(), None);
        put(&mut chunk.bytes, row.at_ms - chunk.last);
        chunk.last = row.at_ms;
        let pairs = || (0u64..).zip(now.iter().zip(&self.newest)).filter(|(_, (now, before))| now != before);
        put(&mut chunk.bytes, pairs().count() as u64);
        for (series, (now, before)) in pairs() {
            put(&mut chunk.bytes, series << 1 | u64::from(now.is_some()));
            if let Some((mean, max)) = now {
                let before = before.unwrap_or_default();
                put_signed(&mut chunk.bytes, mean.wrapping_sub(before.0));
                let over = max.wrapping_sub(*mean);
                put_signed(&mut chunk.bytes, over.wrapping_sub(before.1.wrapping_sub(before.0)));
            }
        }
        self.newest = now;
    }

    /// All of them, oldest first.
    pub fn rows(&self) -> Vec<Row> {
        self.chunks.iter().flat_map(Chunk::rows).collect()
    }

    /// Bytes that it holds, for tests.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum()
    }
}

impl Chunk {
    fn rows(&self) -> Vec<Row> {
        let (mut rows, mut at_ms, mut left) = (Vec::new(), self.first, self.bytes.as_slice());
        let mut known: Vec<Option<(i64, i64)>> = Vec::new();
        while let Some(after) = take(&mut left) {
            at_ms += after;
            for _ in 0..take(&mut left).unwrap_or(0) {
                let Some(head) = take(&mut left) else { break };
                let series = (head >> 1) as usize;
                known.resize(known.len().max(series + 1), None);
                known[series] = (head & 1 == 1).then(|| {
                    let (mean, max) = known[series].unwrap_or_default();
                    let over = max.wrapping_sub(mean);
                    let mean = mean.wrapping_add(take_signed(&mut left));
                    (mean, mean.wrapping_add(over.wrapping_add(take_signed(&mut left))))
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
fn put_signed(out: &mut Vec<u8>, n: i64) {
    put(out, ((n << 1) ^ (n >> 63)) as u64);
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

fn take_signed(from: &mut &[u8]) -> i64 {
    let n = take(from).unwrap_or(0);
    (n >> 1) as i64 ^ -((n & 1) as i64)
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
            row(9, &[None, Some((i64::MAX, i64::MAX)), Some((i64::MIN, 0)), Some((3, 3))]),
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
        assert!(ring.bytes() <= (CHUNKS_MAX + 1) * 2 * CHUNK_MAX, "{}", ring.bytes());
    }
}
