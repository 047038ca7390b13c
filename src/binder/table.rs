//! The tables of a context's records.
//!
//! They are trees: a hash table that grows or shrinks moves all its entries, and with a million
//! nodes everybody in the context would wait for that.

use super::pieces::handled;
use std::collections::{BTreeMap, btree_map};
use std::iter::Map;
use std::ops::RangeBounds;

/// The records of a kind, by id; the latest has the largest. Each lies in a box of its own: a tree
/// moves what it holds whenever something comes or goes, and a record is large.
pub(crate) struct Table<K, V>(BTreeMap<K, Box<V>>);

/// An iterator over all of a table.
pub(crate) type Records<'a, K, V> =
    Map<btree_map::Iter<'a, K, Box<V>>, fn((&'a K, &'a Box<V>)) -> (&'a K, &'a V)>;

#[expect(clippy::borrowed_box, reason = "it is what the tree's iterator gives")]
fn seen<'a, K, V>((id, record): (&'a K, &'a Box<V>)) -> (&'a K, &'a V) {
    handled();
    (id, record)
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table(BTreeMap::new())
    }
}

impl<K: Ord, V> Table<K, V> {
    pub fn get(&self, id: &K) -> Option<&V> {
        handled();
        self.0.get(id).map(Box::as_ref)
    }

    pub fn get_mut(&mut self, id: &K) -> Option<&mut V> {
        handled();
        self.0.get_mut(id).map(Box::as_mut)
    }

    pub fn contains_key(&self, id: &K) -> bool {
        handled();
        self.0.contains_key(id)
    }

    pub fn insert(&mut self, id: K, record: V) {
        handled();
        self.0.insert(id, Box::new(record));
    }

    pub fn remove(&mut self, id: &K) -> Option<Box<V>> {
        handled();
        self.0.remove(id)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.into_iter().map(|(_, record)| record)
    }

    pub fn range(&self, ids: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.range(ids).map(seen)
    }
}

impl<'a, K, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Records<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(seen)
    }
}
