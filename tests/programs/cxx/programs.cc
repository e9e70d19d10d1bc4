// C++: exceptions through many frames and from threads, thread-local objects, condition variables, futures, signals that
// become exceptions, file streams.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <fstream>
#include <future>
#include <iostream>
#include <mutex>
#include <queue>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <vector>

namespace {

struct Counted {
    static std::atomic<int> alive;
    Counted() { alive++; }
    ~Counted() { alive--; }
};
std::atomic<int> Counted::alive{0};

int deep(int levels) {
    Counted here;
    if (levels == 0) throw std::runtime_error("from the bottom");
    return deep(levels - 1) + 1;
}

void exceptions() {
    int caught = 0;
    for (int round = 0; round < 200; round++) {
        try {
            deep(50);
        } catch (const std::runtime_error &) {
            caught++;
        }
    }
    std::cout << "caught " << caught << ", alive " << Counted::alive << std::endl;
    auto failing = std::async(std::launch::async, [] { return deep(3); });
    try {
        failing.get();
    } catch (const std::exception &error) {
        std::cout << "from a thread: " << error.what() << std::endl;
    }
    try {
        std::vector<int>().at(3);
    } catch (const std::out_of_range &) {
        std::cout << "out of range" << std::endl;
    }
}

thread_local std::string mine = "unset";

void threads() {
    std::mutex lock;
    std::condition_variable changed;
    std::queue<int> queue;
    bool closed = false;
    std::atomic<long> sum{0};
    std::vector<std::thread> consumers;
    for (int n = 0; n < 8; n++) {
        consumers.emplace_back([&, n] {
            mine = std::to_string(n);
            for (;;) {
                std::unique_lock held(lock);
                changed.wait(held, [&] { return closed || !queue.empty(); });
                if (queue.empty()) break;
                sum += queue.front();
                queue.pop();
            }
            if (mine != std::to_string(n)) sum = -1;
        });
    }
    for (int n = 0; n < 5000; n++) {
        std::lock_guard held(lock);
        queue.push(n);
        changed.notify_one();
    }
    {
        std::lock_guard held(lock);
        closed = true;
    }
    changed.notify_all();
    for (auto &consumer : consumers) consumer.join();
    std::cout << "sum " << sum << ", here " << mine << std::endl;
    std::mutex other;
    std::unique_lock waiting(other);
    std::condition_variable never;
    auto late = never.wait_for(waiting, std::chrono::milliseconds(10)) == std::cv_status::timeout;
    std::cout << "timed out " << late << std::endl;
}

void *page;

void on_fault(int, siginfo_t *info, void *) {
    if (info->si_addr != page) std::_Exit(9);
    mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

void faults() {
    static char stack[65536];
    stack_t other{};
    other.ss_sp = stack;
    other.ss_size = sizeof stack;
    sigaltstack(&other, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    page = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::strcpy(static_cast<char *>(page), "written after a fault");
    std::cout << static_cast<char *>(page) << std::endl;
}

void files() {
    std::ofstream out("/tmp/stream");
    for (int n = 0; n < 10000; n++) out << n << '\n';
    out.close();
    std::ifstream in("/tmp/stream");
    long sum = 0;
    for (int n; in >> n;) sum += n;
    std::cout << "read " << sum << std::endl;
}

}  // namespace

int main() {
    exceptions();
    threads();
    faults();
    files();
}
