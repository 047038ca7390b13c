//! The tables of a context's records.
//!
//! They are trees: a hash table that grows or shrinks moves all its entries, and with a million
//! nodes everybody in the context would wait for that.

use super::pieces::handled;
use std::collections::{BTreeMap, btree_map};
use std::iter::Inspect;
use std::ops::RangeBounds;

/// The records of a kind, by id; the latest has the largest.
pub(crate) struct Table<K, V>(BTreeMap<K, V>);

/// An iterator over all of a table.
pub(crate) type Records<'a, K, V> = Inspect<btree_map::Iter<'a, K, V>, fn(&(&'a K, &'a V))>;

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table(BTreeMap::new())
    }
}

impl<K: Ord, V> Table<K, V> {
    pub fn get(&self, id: &K) -> Option<&V> {
        handled();
        self.0.get(id)
    }

    pub fn get_mut(&mut self, id: &K) -> Option<&mut V> {
        handled();
        self.0.get_mut(id)
    }

    pub fn contains_key(&self, id: &K) -> bool {
        handled();
        self.0.contains_key(id)
    }

    pub fn insert(&mut self, id: K, record: V) -> Option<V> {
        handled();
        self.0.insert(id, record)
    }

    pub fn remove(&mut self, id: &K) -> Option<V> {
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
        self.0.range(ids).inspect(|_| handled())
    }
}

impl<'a, K, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Records<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().inspect(|_| handled())
    }
}
