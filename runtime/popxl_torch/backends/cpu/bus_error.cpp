// One line, and the end, where a mapped file has been cut short.
//
// A page of a mapped file that is no longer there cannot be read: the system sends SIGBUS, which
// ends a process without a word. The handler names the file. It runs inside whatever was
// interrupted, so it makes system calls only, and allocates nothing.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

namespace {

constexpr int failed = 2;  // a script's status after an error that its user can put right

std::atomic_flag told = ATOMIC_FLAG_INIT;
char line[8192];  // of /proc/self/maps: numbers, and a path of at most 4,096 characters

void say(const char* text, size_t size) {
    while (size > 0) {
        ssize_t written = write(STDERR_FILENO, text, size);
        if (written <= 0) return;
        text += written, size -= written;
    }
}

void say(const char* text) { say(text, strlen(text)); }

// The next line into `line`; false at the end.
bool next_line(int file) {
    size_t size = 0;
    char letter;
    while (read(file, &letter, 1) == 1) {
        if (letter == '\n') {
            line[size] = 0;
            return true;
        }
        if (size + 1 < sizeof line) line[size++] = letter;
    }
    return false;
}

uint64_t hexadecimal(const char*& text) {
    uint64_t number = 0;
    for (;; text++) {
        if (*text >= '0' && *text <= '9') number = number * 16 + (*text - '0');
        else if (*text >= 'a' && *text <= 'f') number = number * 16 + (*text - 'a' + 10);
        else return number;
    }
}

// The path in `line`, with nothing that controls a terminal; null where it is of other addresses,
// or of no file.
char* path_at(uint64_t address) {
    const char* text = line;
    uint64_t begin = hexadecimal(text);
    if (*text++ != '-') return nullptr;
    uint64_t end = hexadecimal(text);
    if (address < begin || address >= end) return nullptr;
    char* path = strchr(line, '/');
    for (char* letter = path; letter && *letter; letter++) {
        unsigned char code = *letter, next = letter[1];
        if (code < 0x20 || code == 0x7f || (code == 0xc2 && next < 0xa0)) *letter = '?';
    }
    return path;
}

void handle(int number, siginfo_t* about, void*) {
    if (told.test_and_set())
        for (;;) pause();  // another thread is at it, and ends the process
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    char* path = nullptr;
    while (maps >= 0 && !path && next_line(maps)) path = path_at((uint64_t)about->si_addr);
    if (!path) {  // no file's: it ends the process as it always did
        signal(number, SIG_DFL);
        return;
    }
    say("error: ");
    say(path);
    say(" was cut short while it was in use, or its disk fails (SIGBUS): restore it, and start "
        "again\n");
    _exit(failed);
}

}  // namespace

// Whether the handler is there now: one of the program's own is left.
extern "C" int popxl_tell_bus_errors() {
    struct sigaction before, action = {};
    if (sigaction(SIGBUS, nullptr, &before) || before.sa_handler != SIG_DFL) return 0;
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, nullptr) == 0;
}
