// OpenMP for ThreadSanitizer: the part of libgomp's interface that the kernels use, on std::thread.
//
// libgomp synchronises with futexes that ThreadSanitizer does not see, so with it every barrier looks like a race.
// Linked into fastseq._C by setup.py under FASTSEQ_SANITIZE=thread, hidden so that torch's libgomp does not replace it.
// Chunks of a dynamic loop are handed out without ordering: a mutex there would hide races between chunks.
#include <pthread.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Loop {
    const long start, step, count, chunk;
    std::atomic<long> next{0};  // iteration
    Loop(long start_, long end, long step_, long chunk_)
        : start(start_), step(step_), count((end - start_ + step_ + (step_ > 0 ? -1 : 1)) / step_), chunk(chunk_) {}
};

struct Team {
    explicit Team(unsigned size_) : size(size_) { pthread_barrier_init(&barrier, nullptr, size); }
    ~Team() { pthread_barrier_destroy(&barrier); }
    const unsigned size;
    pthread_barrier_t barrier;
    std::mutex mutex;
    std::deque<Loop> loops;  // in the order in which the threads come to them
};

struct Member {
    Team* team = nullptr;
    int number = 0;
    std::size_t loops = 0;  // come to so far
    Loop* loop = nullptr;
};
thread_local Member self;
std::mutex atomic_mutex;

// Joins the next loop of the team, which the first to come opens.
void join(long start, long end, long step, long chunk) {
    const std::lock_guard<std::mutex> lock(self.team->mutex);
    if (self.loops == self.team->loops.size()) self.team->loops.emplace_back(start, end, step, chunk);
    self.loop = &self.team->loops[self.loops++];
}

bool take(long* from, long* to) {
    Loop& loop = *self.loop;
    const long first = loop.next.fetch_add(loop.chunk, std::memory_order_relaxed);
    if (first >= loop.count) return false;
    const long last = first + loop.chunk < loop.count ? first + loop.chunk : loop.count;
    *from = loop.start + first * loop.step;
    *to = loop.start + last * loop.step;
    return true;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned) {
    Team team(threads ? threads : 1);
    const Member outer = self;
    const auto run = [&](int number) {
        self = Member{&team, number, 0, nullptr};
        function(data);
    };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < team.size; ++i) others.emplace_back(run, static_cast<int>(i));
    run(0);
    for (std::thread& thread : others) thread.join();
    self = outer;
}

void GOMP_barrier() {
    if (self.team) pthread_barrier_wait(&self.team->barrier);
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* from, long* to) {
    join(start, end, step, chunk);
    return take(from, to);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* from, long* to) { return take(from, to); }

void GOMP_loop_end() { GOMP_barrier(); }
void GOMP_loop_end_nowait() {}

void GOMP_parallel_loop_nonmonotonic_dynamic(void (*function)(void*), void* data, unsigned threads, long start,
                                             long end, long step, long chunk, unsigned flags) {
    auto all = [&] {
        join(start, end, step, chunk);
        function(data);
    };
    using Body = decltype(all);
    GOMP_parallel([](void* body) { (*static_cast<Body*>(body))(); }, &all, threads, flags);
}

void GOMP_atomic_start() { atomic_mutex.lock(); }
void GOMP_atomic_end() { atomic_mutex.unlock(); }

int omp_get_thread_num() { return self.number; }
int omp_get_num_threads() { return self.team ? static_cast<int>(self.team->size) : 1; }
}
