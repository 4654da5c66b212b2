// Threads that share the tasks of one caller at a time. They do not outlive a fork.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

extern "C" { struct Team; }

struct Team {
    void add() { threads.emplace_back([this] { work(); }); }
    ~Team() {
        job = nullptr;
        round.fetch_add(1);
        round.notify_all();
        for (auto& thread : threads) thread.join();
    }

    void run(int tasks, void (*call)(const void*, int), const void* what) {
        job = call, argument = what, num_tasks = tasks;
        next.store(0), busy.store(int(threads.size()));
        round.fetch_add(1);
        round.notify_all();
        take();
        for (int left = busy.load(), spins = 0; left; left = busy.load())
            if (++spins > SPINS) busy.wait(left);
    }

    static constexpr int SPINS = 4000;      // some microseconds: the next tasks mostly come at once
    std::vector<std::thread> threads;
    std::atomic<uint32_t> round{0};
    std::atomic<int> next{0}, busy{0};
    void (*job)(const void*, int) = nullptr;
    const void* argument = nullptr;
    int num_tasks = 0;

private:
    void take() {
        for (int task; (task = next.fetch_add(1)) < num_tasks;) job(argument, task);
    }
    void work() {
        for (uint32_t seen = 0;;) {
            for (int spins = 0; round.load() == seen;)
                if (++spins > SPINS) round.wait(seen);
            seen++;
            if (!job) return;
            take();
            if (busy.fetch_sub(1) == 1) busy.notify_all();
        }
    }
};

namespace {

template <class F> void share(Team* team, int tasks, const F& task) {
    if (!team || tasks < 2) {
        for (int i = 0; i < tasks; i++) task(i);
    } else {
        team->run(tasks, [](const void* what, int i) { (*static_cast<const F*>(what))(i); }, &task);
    }
}

}  // namespace
