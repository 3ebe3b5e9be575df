//! Where memory comes from. musl's own allocator rounds each allocation up to one of a few sizes, which is a seventh of
//! what a parked agent takes; dlmalloc rounds to 16 bytes. What is large still comes from the system: that is zero, and
//! takes no memory, until it is written.

use dlmalloc::GlobalDlmalloc;
use std::alloc::{GlobalAlloc, Layout, System};

/// From how many bytes on an allocation is large: about where musl has the kernel make each its own map.
const LARGE: usize = 128 * 1024;

#[global_allocator]
static HEAP: Heap = Heap;

struct Heap;

fn of(size: usize) -> &'static dyn GlobalAlloc {
    if size < LARGE { &GlobalDlmalloc } else { &System }
}

// SAFETY: each allocation is given back to the allocator that it came from, as its size alone says which that was; what
// each of them asks for is what is asked for here.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { of(layout.size()).alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { of(layout.size()).alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { of(layout.size()).dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if (layout.size() < LARGE) == (size < LARGE) {
            // SAFETY: as above.
            return unsafe { of(size).realloc(ptr, layout, size) };
        }
        // SAFETY: the caller's `layout` and `size` make a layout; both maps are there, and they are two.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(ptr, new, layout.size().min(size));
                self.dealloc(ptr, layout);
            }
            new
        }
    }
}
