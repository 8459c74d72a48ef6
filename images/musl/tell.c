// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// An interpreter that only counts the bytes of its script. It prints whether the basics work with musl: the user
// according to /etc/passwd, a thread, a child, a temporary file, and names that musl's resolver looks up.
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void *thread(void *seen) {
    *(int *)seen = 1;
    return NULL;
}

static long bytes_of(const char *path) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return -1;
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    fclose(file);
    return bytes;
}

static int is_mapped(const char *what) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    int found = 0;
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) found |= strstr(line, what) != NULL;
    if (maps != NULL) fclose(maps);
    return found;
}

int main(int count, char **arguments) {
    if (count == 2 && strcmp(arguments[1], "child") == 0) return 7;
    struct passwd *user = getpwuid(getuid());
    printf("user %s %s\n", user ? user->pw_name : "none", user ? user->pw_dir : "none");
    printf("loader %s\n", is_mapped("/lib/ld-musl-x86_64.so.1") ? "musl" : "another");
    printf("script %ld\n", count > 1 ? bytes_of(arguments[1]) : -1L);

    pthread_t id;
    int seen = 0;
    if (pthread_create(&id, NULL, thread, &seen) == 0) pthread_join(id, NULL);
    printf("thread %d\n", seen);

    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "tell", "child", (char *)NULL);
        _exit(1);
    }
    waitpid(child, &status, 0);
    printf("child %d\n", WEXITSTATUS(status));

    FILE *temporary = tmpfile();
    printf("temporary %s\n", temporary ? "made" : "none");

    struct addrinfo *addresses = NULL;
    printf("localhost %d\n", getaddrinfo("localhost", NULL, NULL, &addresses));
    printf("elsewhere %d\n", getaddrinfo("elsewhere.example", "443", NULL, &addresses));
    char hive[NI_MAXHOST] = "unknown";
    if (getaddrinfo("hive.test", "443", NULL, &addresses) == 0)
        getnameinfo(addresses->ai_addr, addresses->ai_addrlen, hive, sizeof hive, NULL, 0, NI_NUMERICHOST);
    printf("hive %s\n", hive);
    return 3;
}
