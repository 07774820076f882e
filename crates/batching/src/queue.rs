//! Waiting entries: one group for those that may share a batch, and totals for admission.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::entry::{ClientId, Entry, GroupKey, Priority, Ticket};
use crate::hash::{FastMap, TicketMap};
use crate::order::{Key, Order};
use crate::share::Shares;
use crate::time::Time;

/// Of this many places in batches, one goes to the longest waiting where anything is overdue.
pub const OVERDUE_SHARE: u32 = 8;

/// Whose turn it is inside one priority: least served client, earliest deadline, first come.
type Turn = (u64, Time, Ticket, ClientId);

/// The order in which groups' heads leave; a smaller urgency is first.
pub type Urgency = (Reverse<Priority>, u64, Time, Ticket);

/// How many wait, and what they add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// Entries.
    pub entries: usize,
    /// Their summed cost.
    pub cost: u64,
    /// Their summed bytes.
    pub bytes: u64,
}

impl Total {
    fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.cost += u64::from(entry.cost);
        self.bytes += entry.bytes;
    }

    fn subtract(&mut self, entry: &Entry) {
        self.entries -= 1;
        self.cost -= u64::from(entry.cost);
        self.bytes -= entry.bytes;
    }
}

#[derive(Debug, Clone)]
struct Client {
    order: Order,
    /// The one of its keys in [`Level::turns`] that counts; it may be out of date, never too late.
    turn: Turn,
}

/// The waiting entries of one group and one priority.
#[derive(Debug, Clone, Default)]
struct Level {
    clients: FastMap<ClientId, Client>,
    turns: BinaryHeap<Reverse<Turn>>,
}

impl Level {
    fn push(&mut self, entry: &Entry, start: u64) {
        let key = (entry.due(), entry.ticket);
        let turn = (start, key.0, key.1, entry.client);
        let client = self.clients.entry(entry.client).or_insert_with(|| {
            self.turns.push(Reverse(turn));
            Client { order: Order::default(), turn }
        });
        client.order.push(key);
        if turn < client.turn {
            client.turn = turn;
            self.turns.push(Reverse(turn));
        }
    }

    fn removed(&mut self, client: ClientId, waits: impl Fn(Ticket) -> bool) {
        let Some(found) = self.clients.get_mut(&client) else { return };
        found.order.removed(waits);
        if found.order.is_empty() {
            self.clients.remove(&client);
        }
        if self.turns.len() > 2 * self.clients.len() + STALE {
            self.turns = self.clients.values().map(|client| Reverse(client.turn)).collect();
        }
    }

    /// All that wait, in no order.
    fn tickets(&self, waits: impl Fn(Ticket) -> bool + Copy) -> impl Iterator<Item = Ticket> {
        self.clients.values().flat_map(move |client| client.order.iter(waits))
    }

    /// The first due of a client.
    fn first_of(&self, client: ClientId) -> Option<Key> {
        self.clients.get(&client)?.order.first()
    }

    fn head(&mut self, priority: Priority, shares: &Shares) -> Option<Turn> {
        while let Some(Reverse(turn)) = self.turns.peek().copied() {
            let id = turn.3;
            let client = self.clients.get_mut(&id).filter(|client| client.turn == turn);
            let Some((client, (due, ticket))) =
                client.and_then(|client| client.order.first().map(|first| (client, first)))
            else {
                self.turns.pop();
                continue;
            };
            let current = (shares.start(priority, id), due, ticket, id);
            if current == turn {
                return Some(turn);
            }
            client.turn = current;
            self.turns.pop();
            self.turns.push(Reverse(current));
        }
        None
    }
}

/// The waiting entries that may share a batch; never empty while the queue holds it.
#[derive(Debug, Clone, Default)]
pub struct Group {
    levels: [Level; Priority::COUNT],
    arrivals: Order,
    /// The first due of each client and priority: far fewer than entries, and most stay as they are. Some
    /// are out of date, the front never.
    dues: BinaryHeap<Reverse<(Time, Ticket, Priority, ClientId)>>,
    total: Total,
}

/// What is out of date in a heap is swept out once it outnumbers the rest by so many.
const STALE: usize = 64;

impl Group {
    /// Entries waiting, with their cost and bytes.
    pub fn total(&self) -> Total {
        self.total
    }

    /// When the longest-waiting entry came; [`Time::MAX`] for an empty group.
    pub fn oldest_arrival(&self) -> Time {
        self.arrivals.first().map_or(Time::MAX, |(arrived, _)| arrived)
    }

    /// The soonest deadline, and whose; `None` where nobody has one.
    fn soonest(&self) -> Option<Key> {
        self.dues.peek().map(|&Reverse((due, ticket, ..))| (due, ticket))
    }

    /// Half of the time from the first arrival to the soonest deadline; [`Time::MAX`] where none has one.
    ///
    /// The other half is for the model: no entry is to expire for want of company.
    pub fn halfway(&self) -> Time {
        let first = self.oldest_arrival();
        self.soonest().map_or(Time::MAX, |(due, _)| first + due.since(first) / 2)
    }

    /// Notes the first due of a client, which may be another than before.
    fn note_due(&mut self, priority: Priority, client: ClientId) {
        let first = |level: &Level, client| level.first_of(client).filter(|&(due, _)| due != Time::MAX);
        let push = |(due, ticket)| self.dues.push(Reverse((due, ticket, priority, client)));
        first(&self.levels[priority as usize], client).map(push);
        let stale =
            |&Reverse((due, ticket, priority, client)): &Reverse<(Time, Ticket, Priority, ClientId)>| {
                first(&self.levels[priority as usize], client) != Some((due, ticket))
            };
        while self.dues.peek().is_some_and(stale) {
            self.dues.pop();
        }
        let clients: usize = self.levels.iter().map(|level| level.clients.len()).sum();
        if self.dues.len() > 2 * clients + STALE {
            let levels = &self.levels;
            let all = Priority::DESCENDING.into_iter().flat_map(|priority| {
                let level = &levels[priority as usize];
                let dues =
                    level.clients.keys().filter_map(move |&client| Some((client, first(level, client)?)));
                dues.map(move |(client, (due, ticket))| Reverse((due, ticket, priority, client)))
            });
            self.dues = all.collect();
        }
    }

    fn overdue(&self, now: Time, ageing: Option<Duration>) -> Option<Key> {
        let (arrived, ticket) = self.arrivals.first()?;
        (now.since(arrived) >= ageing?).then_some((arrived, ticket))
    }

    fn head(&mut self, shares: &Shares) -> Option<Urgency> {
        Priority::DESCENDING.into_iter().find_map(|priority| {
            let (start, due, ticket, _) = self.levels[priority as usize].head(priority, shares)?;
            Some((Reverse(priority), start, due, ticket))
        })
    }
}

/// All waiting entries of one model.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    waiting: TicketMap<(Entry, GroupKey)>,
    groups: BTreeMap<GroupKey, Group>,
    /// The soonest deadline of each group; some are out of date, the front never.
    soonest: BinaryHeap<Reverse<(Time, GroupKey)>>,
    shares: Shares,
    total: Total,
    by_priority: [Total; Priority::COUNT],
    /// After this long an entry is overdue; `None`: never.
    ageing: Option<Duration>,
    /// Places given since the last to an overdue entry.
    places: u32,
}

impl Queue {
    /// An empty queue in which entries are overdue after `ageing`.
    pub fn new(ageing: Option<Duration>) -> Self {
        Self { ageing, ..Self::default() }
    }

    /// All that waits.
    pub fn total(&self) -> Total {
        self.total
    }

    /// What waits and is at least as urgent as `priority`.
    pub fn ahead_of(&self, priority: Priority) -> Total {
        self.by_priority[priority as usize..].iter().fold(Total::default(), |sum, level| Total {
            entries: sum.entries + level.entries,
            cost: sum.cost + level.cost,
            bytes: sum.bytes + level.bytes,
        })
    }

    /// What waits in one group.
    pub fn total_of(&self, key: GroupKey) -> Total {
        self.groups.get(&key).map_or(Total::default(), |group| group.total)
    }

    /// The entries of a group that have deadlines, in no order.
    pub fn with_deadlines(&self, key: GroupKey) -> impl Iterator<Item = &Entry> {
        let waits = |ticket: Ticket| self.waiting.contains_key(&ticket);
        let levels = self.groups.get(&key).into_iter().flat_map(|group| &group.levels);
        let tickets = levels.flat_map(move |level| level.tickets(waits));
        tickets.filter_map(|ticket| self.get(ticket)).filter(|entry| entry.deadline.is_some())
    }

    /// The soonest deadline of all that waits, and whose.
    pub(crate) fn soonest(&self) -> Option<Key> {
        let Reverse((_, key)) = self.soonest.peek()?;
        self.groups.get(key)?.soonest()
    }

    /// Notes the soonest deadline of a group, if it is another than `before`.
    fn note_soonest(&mut self, key: GroupKey, before: Option<Time>) {
        let due = |key: &GroupKey| Some(self.groups.get(key)?.soonest()?.0);
        let now = due(&key);
        if now == before {
            return;
        }
        self.soonest.extend(now.map(|now| Reverse((now, key))));
        while self.soonest.peek().is_some_and(|Reverse((time, key))| due(key) != Some(*time)) {
            self.soonest.pop();
        }
        if self.soonest.len() > 2 * self.groups.len() + STALE {
            let all = self.groups.iter().filter_map(|(&key, group)| Some(Reverse((group.soonest()?.0, key))));
            self.soonest = all.collect();
        }
    }

    /// Whether the ticket's entry waits.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.waiting.contains_key(&ticket)
    }

    /// The groups that `ripe` lets leave: the one to go first. It is asked of every group.
    pub fn first_of(
        &mut self,
        now: Time,
        mut ripe: impl FnMut(GroupKey, &Group) -> bool,
    ) -> Option<GroupKey> {
        let mut first: Option<(Urgency, GroupKey)> = None;
        let mut overdue: Option<(Key, GroupKey)> = None;
        for (&key, group) in &mut self.groups {
            if self.places + 1 >= OVERDUE_SHARE
                && let Some(late) = group.overdue(now, self.ageing)
                && overdue.is_none_or(|sofar| (late, key) < sofar)
            {
                overdue = Some((late, key));
            }
            if ripe(key, group)
                && let Some(head) = group.head(&self.shares)
                && first.is_none_or(|sofar| (head, key) < sofar)
            {
                first = Some((head, key));
            }
        }
        overdue.map(|(_, key)| key).or(first.map(|(_, key)| key))
    }

    /// Adds an entry whose ticket is not in the queue.
    pub fn push(&mut self, key: GroupKey, entry: Entry) {
        self.shares.joined(entry.priority, entry.client);
        self.total.add(&entry);
        self.by_priority[entry.priority as usize].add(&entry);
        let group = self.groups.entry(key).or_default();
        let before = group.soonest().map(|(due, _)| due);
        group.total.add(&entry);
        group.arrivals.push((entry.arrived, entry.ticket));
        let start = self.shares.start(entry.priority, entry.client);
        let level = &mut group.levels[entry.priority as usize];
        level.push(&entry, start);
        if level.first_of(entry.client) == Some((entry.due(), entry.ticket)) {
            group.note_due(entry.priority, entry.client);
        }
        self.waiting.insert(entry.ticket, (entry, key));
        self.note_soonest(key, before);
    }

    /// Takes one entry out, wherever it stands.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        self.take_out(ticket, 0).map(|(entry, _)| entry)
    }

    /// Takes the first entries of a group, in order, for as long as `fits` agrees to the next.
    ///
    /// It stops at the first that does not fit rather than pass it over: a later one must not overtake it.
    pub fn take(&mut self, key: GroupKey, now: Time, mut fits: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let mut taken = Vec::new();
        while let Some((ticket, owed)) = self.next_of(key, now) {
            let Some((entry, _)) = self.waiting.get(&ticket) else { break };
            if !fits(entry) {
                break;
            }
            let charge = u64::from(entry.cost.max(1));
            let Some((entry, _)) = self.take_out(ticket, charge) else { break };
            self.count_place(owed);
            taken.push(entry);
        }
        taken
    }

    /// The entry of the group that leaves first.
    pub fn head(&mut self, key: GroupKey, now: Time) -> Option<&Entry> {
        let (ticket, _) = self.next_of(key, now)?;
        self.get(ticket)
    }

    /// Who of the group has the next place, and whether that is the place owed to the longest waiting.
    fn next_of(&mut self, key: GroupKey, now: Time) -> Option<(Ticket, bool)> {
        if self.places + 1 >= OVERDUE_SHARE
            && let Some(late) = self.groups.get(&key)?.overdue(now, self.ageing)
            // Of all groups: else one that always has somebody overdue would keep the place from the others.
            && self.groups.values().filter_map(|group| group.arrivals.first()).all(|other| late <= other)
        {
            return Some((late.1, true));
        }
        let (_, _, _, ticket) = self.groups.get_mut(&key)?.head(&self.shares)?;
        Some((ticket, false))
    }

    /// Only the place that was owed settles the debt: under overload those who leave by their own right are
    /// overdue as well, and would otherwise keep it from the rest for ever.
    fn count_place(&mut self, owed: bool) {
        self.places = if owed { 0 } else { (self.places + 1).min(OVERDUE_SHARE) };
    }

    fn take_out(&mut self, ticket: Ticket, charge: u64) -> Option<(Entry, GroupKey)> {
        let (entry, key) = self.waiting.remove(&ticket)?;
        let waiting = &self.waiting;
        let waits = |ticket: Ticket| waiting.contains_key(&ticket);
        self.shares.left(entry.priority, entry.client, charge);
        self.total.subtract(&entry);
        self.by_priority[entry.priority as usize].subtract(&entry);
        let group = self.groups.get_mut(&key)?;
        let before = group.soonest().map(|(due, _)| due);
        group.total.subtract(&entry);
        group.arrivals.removed(waits);
        let level = &mut group.levels[entry.priority as usize];
        let first = level.first_of(entry.client);
        level.removed(entry.client, waits);
        if level.first_of(entry.client) != first {
            group.note_due(entry.priority, entry.client);
        }
        if group.total.entries == 0 {
            self.groups.remove(&key);
        }
        self.note_soonest(key, before);
        Some((entry, key))
    }

    /// The lengths of the entries of the group's most urgent priority, each with its ticket, the one that
    /// leaves first being first and the others in no order. At most about `most`.
    pub fn lengths(&mut self, key: GroupKey, now: Time, most: usize) -> Vec<(u32, Ticket)> {
        let Some((first, _)) = self.next_of(key, now) else { return Vec::new() };
        let Some((entry, _)) = self.waiting.get(&first) else { return Vec::new() };
        let Some(group) = self.groups.get(&key) else { return Vec::new() };
        let waits = |ticket: Ticket| self.waiting.contains_key(&ticket);
        let others = group.levels[entry.priority as usize].tickets(waits);
        std::iter::once(first)
            .chain(others.filter(|&ticket| ticket != first))
            .take(most)
            .filter_map(|ticket| Some((self.waiting.get(&ticket)?.0.seq_len, ticket)))
            .collect()
    }

    /// The lengths of the group's entries of one priority, each with its ticket, in no order. At most `most`.
    pub fn lengths_at(&self, key: GroupKey, priority: Priority, most: usize) -> Vec<(u32, Ticket)> {
        let Some(group) = self.groups.get(&key) else { return Vec::new() };
        let waits = |ticket: Ticket| self.waiting.contains_key(&ticket);
        group.levels[priority as usize]
            .tickets(waits)
            .take(most)
            .filter_map(|ticket| Some((self.waiting.get(&ticket)?.0.seq_len, ticket)))
            .collect()
    }

    /// An entry that waits.
    pub fn get(&self, ticket: Ticket) -> Option<&Entry> {
        self.waiting.get(&ticket).map(|(entry, _)| entry)
    }

    /// Takes these out as a batch's places, the first of them as the head of its group.
    pub fn take_these(&mut self, now: Time, tickets: impl Iterator<Item = Ticket>) -> Vec<Entry> {
        let mut taken = Vec::new();
        for ticket in tickets {
            let Some((entry, key)) = self.waiting.get(&ticket) else { continue };
            let (charge, key) = (u64::from(entry.cost.max(1)), *key);
            let owed = taken.is_empty() && self.next_of(key, now) == Some((ticket, true));
            self.count_place(owed);
            taken.extend(self.take_out(ticket, charge).map(|(entry, _)| entry));
        }
        taken
    }

    #[cfg(test)]
    pub(crate) fn holds_nothing(&self) -> bool {
        self.groups.is_empty()
            && self.waiting.is_empty()
            && self.soonest.is_empty()
            && self.total == Total::default()
            && self.shares.nobody_waits()
    }
}
