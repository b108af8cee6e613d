import {createServer, type IncomingMessage, type Server, type ServerResponse} from 'node:http';
import type {AddressInfo} from 'node:net';
import type {StatusConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock, Metrics, Readiness, Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {listenOnPort, listenOnSocket} from './listen.ts';
import {createMergedMetrics} from './merge-metrics.ts';
import {startProcessMetrics} from './process-metrics.ts';
import {Reporter, type StatusReport} from './report.ts';
import {answerControl, answerPublic, type Command, type Question, type Reply, type RouteDeps, text} from './routes.ts';
import {type ScrapeSource, scrapeOver} from './scrape.ts';

export interface StatusDeps {
	readonly config: StatusConfig;
	readonly readiness: Readiness;
	readonly metrics: Metrics;
	readonly clock: Clock;
	readonly log: Logger;
	readonly version: string;
	/** True from the moment the agent begins to stop: then it is not ready, whatever the gates say. */
	readonly isStopping?: () => boolean;
}

export interface StatusServer extends Running {
	/** The TCP port in use; undefined without one. */
	readonly port: number | undefined;
	/** Adds a part to the report; `report` gives something JSON can hold. */
	add(name: string, report: () => unknown): void;
	/** `POST /name` on the control socket, and there only. */
	addCommand(name: string, command: Command): void;
	/** Where Envoy's metrics come from, once there is an Envoy. */
	setEnvoyScrape(source: ScrapeSource | undefined): void;
	report(): StatusReport;
}

/** An application's page past this is left out. */
const mostApplicationBytes = 10 * 2 ** 20;
/** Bytes of a command's input. */
const mostInputBytes = 64 * 2 ** 10;
/** Prometheus and a person or two; more at once is a mistake or an attack, and each holds whole pages in memory. */
const mostScrapes = 4;
/** Health checks are short and few. Together with the timeouts: who holds connections open loses them first. */
const mostConnections = 256;

/**
 * Serves health and metrics on TCP and everything on the control socket.
 * @throws AgentError `status.port_in_use`, `status.listen_failed`
 */
export async function startStatusServer(deps: StatusDeps): Promise<StatusServer> {
	const {config, readiness, metrics, clock, log, version} = deps;
	const reporter = new Reporter({readiness, clock, version, isStopping: deps.isStopping});
	const commands = new Map<string, Command>();
	const processMetrics = startProcessMetrics({clock, version});
	let envoy: ScrapeSource | undefined;
	const routes: RouteDeps = {
		readiness,
		commands,
		isStopping: deps.isStopping ?? (() => false),
		report: () => reporter.report(),
		scrape: createMergedMetrics({
			metrics,
			log,
			renderProcess: processMetrics.render,
			envoy: () => (config.isEnvoyMerged ? envoy : undefined),
			applications: config.appMetrics.map(target => scrapeOver(target, mostApplicationBytes)),
		}),
	};
	const limited = {...routes, scrape: limitConcurrency(routes.scrape)};
	const control = createStatusServer(question => answerControl(question, limited), log);
	const open = createStatusServer(question => answerPublic(question, limited), log);
	const stop = async () => {
		processMetrics.stop();
		await Promise.all([closeServer(open), closeServer(control)]);
	};
	try {
		await listenOnSocket(control, config.controlSocketPath);
		if (config.port > 0) await listenOnPort(open, config.address, config.port);
	} catch (error) {
		await stop();
		throw error;
	}
	return {
		port: (open.address() as AddressInfo | null)?.port,
		finished: firstFailure([control, open]),
		add: (name, report) => reporter.add(name, report),
		addCommand: (name, command) => commands.set(name, command),
		setEnvoyScrape: source => {
			envoy = source;
		},
		report: () => reporter.report(),
		stop,
	};
}

class Busy extends Error {}

function limitConcurrency<A, R>(run: (argument: A) => Promise<R>): (argument: A) => Promise<R> {
	let running = 0;
	return async argument => {
		if (running >= mostScrapes) throw new Busy();
		running++;
		try {
			return await run(argument);
		} finally {
			running--;
		}
	};
}

function createStatusServer(answer: (question: Question) => Promise<Reply>, log: Logger): Server {
	const server = createServer(
		{
			maxHeaderSize: 8192,
			headersTimeout: 5000,
			requestTimeout: 10_000,
			connectionsCheckingInterval: 1000,
			keepAliveTimeout: 15_000,
		},
		(request, response) => {
			respond(request, response, answer).catch((error: unknown) => {
				log.warn({err: error}, 'status request failed');
				response.destroy();
			});
		},
	);
	server.maxConnections = mostConnections;
	// No progress in this time, in either direction; also ends a reader that does not read.
	server.timeout = 60_000;
	return server;
}

async function respond(
	request: IncomingMessage,
	response: ServerResponse,
	answer: (question: Question) => Promise<Reply>,
): Promise<void> {
	const reply = await answer(readQuestion(request)).catch((error: unknown) => {
		if (error instanceof Busy) return text(503, 'too many scrapes at once\n');
		throw error;
	});
	const {status, contentType, chunks, allow} = reply;
	const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
	response.writeHead(status, {
		'content-type': contentType,
		'content-length': length,
		'cache-control': 'no-store',
		'x-content-type-options': 'nosniff',
		...(allow ? {allow, connection: 'close'} : {}),
	});
	for (const chunk of request.method === 'HEAD' ? [] : chunks) response.write(chunk);
	response.end();
}

function readQuestion(request: IncomingMessage): Question {
	const url = request.url ?? '/';
	const mark = url.indexOf('?');
	const {accept, 'user-agent': userAgent, 'x-prometheus-scrape-timeout-seconds': timeout} = request.headers;
	return {
		method: request.method ?? 'GET',
		path: mark < 0 ? url : url.slice(0, mark),
		scraper: {accept, userAgent, timeoutSeconds: timeout?.toString(), query: mark < 0 ? '' : url.slice(mark)},
		readInput: () => readInput(request),
	};
}

async function readInput(request: IncomingMessage): Promise<unknown> {
	let body = '';
	for await (const chunk of request.setEncoding('utf8') as AsyncIterable<string>) {
		body += chunk;
		if (body.length > mostInputBytes)
			throw new AgentError('cli.usage', `read input of command: longer than ${mostInputBytes} bytes`);
	}
	try {
		return body === '' ? undefined : JSON.parse(body);
	} catch (cause) {
		throw new AgentError('cli.usage', `read input of command: ${reasonOf(cause)}`, {cause});
	}
}

function firstFailure(servers: readonly Server[]): Promise<void> {
	return new Promise((_, reject) => {
		for (const server of servers) server.on('error', reject);
	});
}

async function closeServer(server: Server): Promise<void> {
	if (!server.listening) return;
	await new Promise<void>(resolve => {
		server.close(() => resolve());
		server.closeAllConnections();
	});
}
