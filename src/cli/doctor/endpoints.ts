import type {Config, Endpoint} from '../../config/index.ts';
import {formatEndpoint} from '../../control-plane/index.ts';

/** Of configuration and CA, each once. */
export function endpointsOf({controlPlane}: Config): readonly Endpoint[] {
	const all = [...controlPlane.endpoints, ...controlPlane.caEndpoints];
	return all.filter((each, index) => all.findIndex(other => formatEndpoint(other) === formatEndpoint(each)) === index);
}
