/* Raw float32 peak of one thread: independent fused multiply-adds on the widest vectors; prints GFLOP/s. */
#include <stdio.h>
#include <time.h>
#ifndef WIDTH
#define WIDTH 16
#endif
typedef float vec __attribute__((vector_size(4 * WIDTH)));
static double cpu(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
int main(void) {
  const long rounds = 20000000;
  vec a[12], x, y;
  for (int i = 0; i < WIDTH; i++) x[i] = 0.999f, y[i] = 1e-3f;
  for (int j = 0; j < 12; j++) a[j] = x;
  double best = 0;
  for (int r = 0; r < 5; r++) {
    double start = cpu();
    for (long n = 0; n < rounds; n++) {
#define STEP(j) a[j] = a[j] * x + y;
      STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)
      __asm__ volatile("" ::"m"(n));
    }
    double rate = rounds * 12.0 * 2 * WIDTH / (cpu() - start) / 1e9;
    if (rate > best) best = rate;
  }
  float sum = 0;
  for (int j = 0; j < 12; j++)
    for (int i = 0; i < WIDTH; i++) sum += a[j][i];
  fprintf(stderr, "%g\n", sum); /* keeps the work from being removed */
  printf("%.1f\n", best);
  return 0;
}
