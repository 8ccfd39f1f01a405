//! The allocator of key/value pages: who owns which page of the pool, and which pages hold what several sequences begin with.
//!
//! The life of a page:
//! 1. **free**: nobody's, its content means nothing;
//! 2. **owned**: a sequence took it ([`Pages::grow`]) and fills it token by token;
//! 3. **known**: it is full, and [`Pages::publish`] has put it into the index of prefixes under the tokens that led to it;
//! 4. **shared**: another sequence began with the same tokens ([`Pages::begin`]) or was split off ([`Pages::fork`]): nobody writes it; who has
//!    to gets a copy ([`Copy`](PageCopy), the caller copies the content);
//! 5. **resting**: known, but no sequence has it any more ([`Pages::release`]); it can be shared again;
//! 6. **evicted**: of the resting pages the one that was left longest ago is free again when a page is wanted and none is.
//!
//! Knows tokens and numbers of pages, nothing of what lies in them.

use crate::ops::paged_attention::PAGE_TOKENS;
use std::collections::{BTreeMap, HashMap};

/// The number of a page in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct PageId(pub u32);

/// What a page holds, named once for all: two pages of one content have the same prefix before them and the same tokens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct ContentId(u64);

/// The key of the index: what was before, and the tokens of the page. Compared whole: no two prefixes are taken for one another.
type Content = (Option<ContentId>, [u32; PAGE_TOKENS]);

/// A page whose content must be copied before the next token is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageCopy {
    pub from: PageId,
    pub to: PageId,
}

/// There is no page left, and none to evict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all {pages} pages of keys and values are in use")]
pub struct OutOfPages {
    pub pages: usize,
}

/// The pages of a sequence, in the order of its tokens. Given back by [`Pages::release`] alone: it is not cloned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    pages: Vec<PageId>,
    /// Tokens that have room: those written, and those about to be.
    tokens: usize,
    /// Full pages at the front that are known.
    known: usize,
    /// What the last known page holds.
    content: Option<ContentId>,
}

impl PageTable {
    /// Numbers of the pages.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The same as plain numbers.
    pub fn numbers(&self) -> &[u32] {
        bytemuck::cast_slice(&self.pages)
    }

    /// Tokens that it has room for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// A page in use or known.
#[derive(Clone, Debug, Default)]
struct Page {
    /// Tables that have it.
    owners: u32,
    /// Under what it is known.
    content: Option<(ContentId, Content)>,
    /// When it was left, where it rests.
    left: u64,
}

/// The allocator.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<Page>,
    /// Free pages; the next is taken from the end.
    free: Vec<PageId>,
    index: HashMap<Content, (ContentId, PageId)>,
    /// Resting pages by the time they were left.
    resting: BTreeMap<u64, PageId>,
    clock: u64,
    contents: u64,
}

impl Pages {
    /// An allocator of `pages` free pages.
    pub fn new(pages: usize) -> Pages {
        let free = (0..pages as u32).rev().map(PageId).collect();
        let (index, resting) = (HashMap::new(), BTreeMap::new());
        Pages { pages: vec![Page::default(); pages], free, index, resting, clock: 0, contents: 0 }
    }

    /// All pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is no page at all.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Pages that can be taken: free and resting ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.resting.len()
    }

    /// Pages that rest.
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Begins a sequence with as many whole pages of known content as `tokens` begin with. The last token is never among them: somebody has
    /// to compute what comes after it.
    pub fn begin(&mut self, tokens: &[u32]) -> PageTable {
        let mut table = PageTable::default();
        for tokens in tokens[..tokens.len().saturating_sub(1)].as_chunks::<PAGE_TOKENS>().0 {
            let Some(&(content, page)) = self.index.get(&(table.content, *tokens)) else { break };
            self.share(page);
            table.pages.push(page);
            table.content = Some(content);
        }
        table.known = table.pages.len();
        table.tokens = table.known * PAGE_TOKENS;
        table
    }

    /// Makes room for `tokens` more tokens. What is returned must be copied before they are written: at most the page of the first of them.
    ///
    /// # Errors
    /// There are too few pages; then nothing has changed.
    pub fn grow(&mut self, table: &mut PageTable, tokens: usize) -> Result<Option<PageCopy>, OutOfPages> {
        let end = table.tokens + tokens;
        let partial = (tokens > 0 && !table.tokens.is_multiple_of(PAGE_TOKENS)).then_some(table.tokens / PAGE_TOKENS);
        let copied = partial.filter(|&at| self.page(table.pages[at]).owners > 1);
        let wanted = end.div_ceil(PAGE_TOKENS) - table.pages.len() + usize::from(copied.is_some());
        if wanted > self.available() {
            return Err(OutOfPages { pages: self.pages.len() });
        }
        let copy = copied.map(|at| {
            let copy = PageCopy { from: table.pages[at], to: self.take() };
            self.pages[copy.from.0 as usize].owners -= 1;
            table.pages[at] = copy.to;
            copy
        });
        while table.pages.len() < end.div_ceil(PAGE_TOKENS) {
            table.pages.push(self.take());
        }
        table.tokens = end;
        Ok(copy)
    }

    /// Says that the first `tokens.len()` tokens of a sequence are written, and what they are: its full pages become known, where no page of the
    /// same content is.
    ///
    /// # Panics
    /// If there are more tokens than the table has room for.
    pub fn publish(&mut self, table: &mut PageTable, tokens: &[u32]) {
        assert!(tokens.len() <= table.tokens, "{} tokens in room for {}", tokens.len(), table.tokens);
        for tokens in tokens.as_chunks::<PAGE_TOKENS>().0.iter().skip(table.known) {
            let (key, page) = ((table.content, *tokens), table.pages[table.known]);
            let content = match self.index.get(&key) {
                Some(&(content, _)) => content,
                None => {
                    let content = ContentId(self.contents);
                    self.contents += 1;
                    self.index.insert(key, (content, page));
                    // A page that was known under a prefix that was evicted since is known anew.
                    if let Some((_, old)) = self.pages[page.0 as usize].content.replace((content, key)) {
                        self.index.remove(&old);
                    }
                    content
                }
            };
            table.content = Some(content);
            table.known += 1;
        }
    }

    /// A second sequence with the same tokens; the page that is not full is copied by the first of the two that writes to it.
    pub fn fork(&mut self, table: &PageTable) -> PageTable {
        for &page in &table.pages {
            self.share(page);
        }
        PageTable { pages: table.pages.clone(), ..*table }
    }

    /// Takes back the room behind the first `tokens` tokens: what was drawn there is not wanted.
    ///
    /// # Panics
    /// If there is not so much.
    pub fn shrink(&mut self, table: &mut PageTable, tokens: usize) {
        assert!(tokens <= table.tokens, "{tokens} tokens of {}", table.tokens);
        assert!(table.known * PAGE_TOKENS <= tokens, "known pages are not taken back");
        for page in table.pages.split_off(tokens.div_ceil(PAGE_TOKENS)).into_iter().rev() {
            self.leave(page);
        }
        table.tokens = tokens;
    }

    /// Ends a sequence: its pages are free, or rest where they are known.
    pub fn release(&mut self, table: PageTable) {
        // From the end: of a prefix the last page is evicted first, for without the first ones it is of no use.
        for page in table.pages.into_iter().rev() {
            self.leave(page);
        }
    }

    fn page(&self, page: PageId) -> &Page {
        &self.pages[page.0 as usize]
    }

    fn share(&mut self, id: PageId) {
        let page = &mut self.pages[id.0 as usize];
        if page.owners == 0 {
            self.resting.remove(&page.left);
        }
        page.owners += 1;
    }

    fn leave(&mut self, id: PageId) {
        let page = &mut self.pages[id.0 as usize];
        page.owners -= 1;
        match (page.owners, &page.content) {
            (0, None) => self.free.push(id),
            (0, Some(_)) => {
                page.left = self.clock;
                self.resting.insert(self.clock, id);
                self.clock += 1;
            }
            _ => {}
        }
    }

    /// A page for one owner; the caller has asked whether there is one.
    fn take(&mut self) -> PageId {
        let id = self.free.pop().unwrap_or_else(|| {
            let (_, id) = self.resting.pop_first().expect("asked before");
            if let Some((_, key)) = self.pages[id.0 as usize].content.take() {
                self.index.remove(&key);
            }
            id
        });
        self.pages[id.0 as usize].owners = 1;
        id
    }

    /// What must hold of the allocator and all its tables.
    ///
    /// # Errors
    /// What does not.
    pub fn check_invariants<'a>(&self, tables: impl IntoIterator<Item = &'a PageTable>) -> Result<(), String> {
        let mut owners = vec![0; self.pages.len()];
        for table in tables {
            if table.pages.len() != table.tokens.div_ceil(PAGE_TOKENS) {
                return Err(format!("{} pages for {} tokens", table.pages.len(), table.tokens));
            }
            if table.known > table.tokens / PAGE_TOKENS || (table.known == 0) != table.content.is_none() {
                return Err(format!("{} known pages of {} tokens: {:?}", table.known, table.tokens, table.content));
            }
            table.pages.iter().for_each(|page| owners[page.0 as usize] += 1);
        }
        let mut seen = vec![0; self.pages.len()];
        self.free.iter().chain(self.resting.values()).for_each(|page| seen[page.0 as usize] += 1);
        for (i, page) in self.pages.iter().enumerate() {
            let (id, rests) = (PageId(i as u32), self.resting.get(&page.left) == Some(&PageId(i as u32)));
            if page.owners != owners[i] {
                return Err(format!("{id:?} counts {} owners and has {}", page.owners, owners[i]));
            }
            if seen[i] != u32::from(page.owners == 0) {
                return Err(format!("{id:?} with {} owners is {} times free or resting", page.owners, seen[i]));
            }
            if page.owners == 0 && rests != page.content.is_some() {
                return Err(format!("{id:?} is known or rests, not both"));
            }
            if let Some((content, key)) = &page.content
                && self.index.get(key) != Some(&(*content, id))
            {
                return Err(format!("{id:?} is not in the index under its content"));
            }
        }
        let known = self.pages.iter().filter(|page| page.content.is_some()).count();
        if known != self.index.len() {
            return Err(format!("{known} known pages, {} in the index", self.index.len()));
        }
        Ok(())
    }
}
